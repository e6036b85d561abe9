"""Answers from a closed set, against a slow loop over sentences and answers."""

import pytest
import torch
from helpers import small_models as helpers
from helpers.candidate_samples import ANSWERS, EOS, PAD, TRIE, one_by_one, sample

from ofa_exit.data.answer_tree import AnswerTree
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.plugin.search.candidates import AllCandidateGenerator
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit


def check(hypotheses, expected, answers=ANSWERS):
    """Compare with the token log-probabilities of each answer."""
    assert sorted(h["tokens"].tolist() for h in hypotheses) == sorted([*a, EOS] for a in answers)
    scores = [float(h["score"]) for h in hypotheses]
    assert scores == sorted(scores, reverse=True)
    for hypothesis in hypotheses:
        each = expected[answers.index(hypothesis["tokens"].tolist()[:-1])]
        torch.testing.assert_close(hypothesis["positional_scores"], each, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(hypothesis["score"], each.sum(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_scores_equal_a_slow_loop(split, prompts):
    model, batch = helpers.nano(split), sample(prompts)
    generated = AllCandidateGenerator([model], TRIE, PAD).generate([model], batch, bos_token=0)
    assert len(generated) == 3
    for number, hypotheses in enumerate(generated):
        check(hypotheses, one_by_one(model, batch, number))
    assert "prev_output_tokens" in batch["net_input"]  # the sample stays as it was


def test_ensembles_average_probabilities():
    first, second = helpers.nano(), helpers.nano()
    with torch.no_grad():
        for parameter in second.decoder.parameters():
            parameter.mul_(0.7)
    batch = sample(prompts=False)
    generated = AllCandidateGenerator([first, second], TRIE, PAD).generate([], batch)
    for number, hypotheses in enumerate(generated):
        both = zip(one_by_one(first, batch, number), one_by_one(second, batch, number))
        check(hypotheses, [((a.exp() + b.exp()) / 2).log() for a, b in both])


@pytest.mark.parametrize("prompts", [False, True])
def test_answers_with_exits_do_not_depend_on_the_batch(prompts):
    model, batch = helpers.nano(), sample(prompts)
    model.configure_exits(SimilarityExit(0.97, 0.97, decoder_threshold=0.9, schedule="decay"))
    generator = AllCandidateGenerator([model], TRIE, PAD)

    def run(chosen):
        limits = generator.step_limits(chosen["prompt_lengths"])
        net_input = {**chosen["net_input"], "step_limit": limits}
        hypotheses = generator.generate([model], {**chosen, "net_input": net_input})
        tokens = [[h["tokens"].tolist() for h in hyps] for hyps in hypotheses]
        return hypotheses, tokens, generator.traces()[0].depths(tokens)

    together, tokens, depths = run(batch)
    used = {layers for answers in depths for answer in answers for layers in answer}
    assert len(used) > 1  # some exit early, some do not
    for number in range(3):
        net_input = helpers.select(batch["net_input"], number)
        alone = {
            "uniq_ids": ["x"],
            "net_input": net_input,
            "prompt_lengths": batch["prompt_lengths"][number : number + 1],
        }
        hypotheses, own_tokens, own_depths = run(alone)
        assert own_tokens[0] == tokens[number]
        assert own_depths[0] == depths[number]
        for one, other in zip(hypotheses[0], together[number]):
            torch.testing.assert_close(one["score"], other["score"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts", [False, True])
def test_traces_give_a_depth_for_every_token_of_the_answer(prompts):
    model, batch = helpers.nano(), sample(prompts)
    model.configure_exits(StaticExit((1, 2, 4)))
    generator = AllCandidateGenerator([model], TRIE, PAD)
    hypotheses = generator.generate([model], batch)
    tokens = [[h["tokens"].tolist() for h in hyps] for hyps in hypotheses]
    (trace,) = generator.traces()
    decided = {5: [4, 0], 7: [4, 4, 0, 0]}  # tokens without a choice run no layer
    assert trace.depths(tokens) == [
        [decided[a[0]][: len(a)] for a in answers] for answers in tokens
    ]
    assert trace.image_layers.tolist() == [1, 1, 0]
    model.configure_exits(None)
    generator.generate([model], batch)
    assert generator.traces() == [None]


def test_every_layer_runs_once_per_sentence():
    model, batch = helpers.nano(), sample(prompts=True)
    rows = []
    for layer in (model.encoder.layers[0], model.decoder.layers[0]):
        layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:2]))
    AllCandidateGenerator([model], TRIE, PAD).generate([model], batch)
    image, text, decoder = rows
    assert image[0] == text[0] == 3
    assert decoder == (3, 4 + 1)  # the longest prompt, and 7: all that follows 8 or 9 is forced


@pytest.mark.parametrize("prompts", [False, True])
def test_answers_with_a_common_first_token(prompts):
    """The choice is between later words, and between continuing and ending."""
    model, batch = helpers.nano(), sample(prompts)
    answers = [[7, 8], [7, 8, 9], [7, 8, 9, 10, 11], [7, 8, 9, 10, 12]]
    trie = AnswerTrie(answers, EOS)
    generated = AllCandidateGenerator([model], trie, PAD).generate([model], batch)
    for number, hypotheses in enumerate(generated):
        expected = one_by_one(model, batch, number, trie)
        check(hypotheses, expected, answers)


def test_a_single_answer_is_rejected():
    with pytest.raises(ValueError, match="one answer"):
        AllCandidateGenerator([helpers.nano()], AnswerTrie([[5, 6]], EOS), PAD)


@pytest.mark.parametrize("prompts", [False, True])
def test_a_row_runs_until_its_last_decision(prompts):
    """Prompt tokens run no deeper than the deciding ones, and hooks agree with the trace."""
    model, batch = helpers.nano(), sample(prompts)
    model.configure_exits(SimilarityExit(2.0, 2.0, decoder_threshold=0.9, schedule="static"))
    rows = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    generator = AllCandidateGenerator([model], TRIE, PAD)
    generator.generate([model], batch)
    (step,) = generator.traces()[0].steps
    assert sum(rows) == int(step.layers_run.sum())
    needed = torch.tensor([max(used.values()) for used in generator.traces()[0].layers_by_prefix()])
    assert (step.layers_run >= needed).all() and int(step.layers_run.max()) == int(needed.max())
    (scored,) = [work.units.tolist() for work in step.work if work.part == "vocabulary"]
    assert scored == [2, 2, 2]


def test_step_limits_count_prompt_and_longest_answer():
    generator = AllCandidateGenerator([helpers.nano()], TRIE, PAD)
    assert generator.step_limits(torch.tensor([1, 5])).tolist() == [4, 8]


def test_nan_scores_are_reported_by_sample():
    model, batch = helpers.nano(), sample(prompts=False)
    batch["net_input"]["patch_images"][1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"NaN for 1 of 3 samples of a batch: s1\. "):
        AllCandidateGenerator([model], TRIE, PAD).generate([model], batch)


def test_prefixes_are_rejected():
    model, batch = helpers.nano(), sample(prompts=False)
    with pytest.raises(ValueError, match="closed set"):
        AllCandidateGenerator([model], TRIE, PAD).generate(
            [model], batch, prefix_tokens=torch.tensor([[5], [5], [5]])
        )


# ---------------------------------------------------------------------- rows of bounded size

MANY = [[a, *rest] for a in range(5, 15) for rest in ([], [20, 21], [20, 22, 23], [24, 25])]


@pytest.mark.parametrize("over_vocabulary", [False, True])
@pytest.mark.parametrize("room", [1, 3, 7, 12, 1000])
def test_rows_of_a_tree_hold_the_ancestors_of_their_tokens(room, over_vocabulary, monkeypatch):
    monkeypatch.setattr("ofa_exit.data.answer_tree.TOKENS_PER_ROW", room)
    trie = AnswerTrie(MANY, EOS)
    tree = AnswerTree(trie, over_vocabulary)
    longest_path = max(map(len, tree.decisions))
    assert tree.tokens.size(1) <= max(room, longest_path)
    asked = list(zip(tree.place_row.tolist(), tree.place_column.tolist()))
    assert len(set(asked)) == len(tree.decisions)
    for decision, (row, column) in zip(tree.decisions, asked):
        if decision:
            seen = tree.ancestors[row, column].nonzero().flatten()
            seen = sorted(seen.tolist(), key=lambda at: int(tree.depth[row, at]))
            assert tuple(tree.tokens[row, seen].tolist()) == decision
            assert tree.depth[row, seen].tolist() == list(range(1, len(decision) + 1))
    wanted = trie.prefixes() if over_vocabulary else trie.branches()
    assert tree.decisions == wanted
    if room == 1000:
        assert tree.rows == 1


@pytest.mark.parametrize(
    "policy", [None, SimilarityExit(0.97, 0.97, decoder_threshold=0.9, schedule="decay")]
)
@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_scores_and_depths_do_not_depend_on_the_size_of_rows(policy, kv, monkeypatch):
    model, batch = helpers.nano(), sample(prompts=True)
    model.configure_exits(policy, kv)
    trie = AnswerTrie(MANY, EOS)

    def run(room):
        monkeypatch.setattr("ofa_exit.data.answer_tree.TOKENS_PER_ROW", room)
        generator = AllCandidateGenerator([model], trie, PAD)
        limits = generator.step_limits(batch["prompt_lengths"])
        net_input = {**batch["net_input"], "step_limit": limits}
        hypotheses = generator.generate([model], {**batch, "net_input": net_input})
        (trace,) = generator.traces()
        return generator.tree.rows, hypotheses, trace and trace.layers_by_prefix()

    rows, whole, depths = run(1000)
    assert rows == 1
    if policy is None:
        for number, hypotheses in enumerate(whole):
            check(hypotheses, one_by_one(model, batch, number, trie), MANY)
    else:
        assert len({layers for used in depths for layers in used.values()}) > 1
    for room in (2, 5, 9):
        split_rows, split, split_depths = run(room)
        assert split_rows > 1
        assert split_depths == depths
        for one, other in zip(whole, split):
            scores = [
                {tuple(h["tokens"].tolist()): h["score"] for h in hyps} for hyps in (one, other)
            ]
            assert scores[0].keys() == scores[1].keys()
            for answer, score in scores[0].items():
                torch.testing.assert_close(score, scores[1][answer], atol=1e-5, rtol=1e-4)


def test_nbest_limits_the_returned_answers():
    model, batch = helpers.nano(), sample(prompts=False)
    trie = AnswerTrie(MANY, EOS)
    everything = AllCandidateGenerator([model], trie, PAD).generate([model], batch)
    best = AllCandidateGenerator([model], trie, PAD, nbest=2).generate([model], batch)
    for few, every in zip(best, everything):
        assert [h["tokens"].tolist() for h in few] == [h["tokens"].tolist() for h in every[:2]]


def test_cross_attention_runs_once_per_sentence_for_any_number_of_rows(monkeypatch):
    """The rows of a sentence are queries of one attention: keys are not copied."""
    model, batch = helpers.nano(), sample(prompts=False)
    keys = []
    attention = model.decoder.layers[0].encoder_attn
    attention.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[1].size(0)))
    monkeypatch.setattr("ofa_exit.data.answer_tree.TOKENS_PER_ROW", 5)
    generator = AllCandidateGenerator([model], AnswerTrie(MANY, EOS), PAD)
    assert generator.tree.rows > 2
    generator.generate([model], batch)
    assert keys == [3]

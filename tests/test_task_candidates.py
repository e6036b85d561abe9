"""Answers out of a closed set, against a slow loop over sentences and answers."""

import helpers
import pytest
import torch

from ofa_exit.data.trie import AnswerTrie
from ofa_exit.plugin.candidates import AllCandidateGenerator
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

PAD, EOS = 1, 2
ANSWERS = [[5], [7, 8], [7, 9, 10]]
TRIE = AnswerTrie(ANSWERS, EOS)


def sample(prompts: bool, rows: int = 3) -> dict:
    """prompts: the decoder is fed 2, 4, 3 tokens before the answer; otherwise bos alone."""
    net_input = helpers.batch(rows)
    lengths = torch.tensor([2, 4, 3] if prompts else [1, 1, 1])[:rows]
    prev = net_input["prev_output_tokens"]
    prev[:, 4:] = PAD  # what collate leaves behind shorter rows
    return {
        "id": torch.arange(rows),
        "uniq_ids": [f"s{row}" for row in range(rows)],
        "net_input": net_input,
        "prompt_lengths": lengths,
    }


def one_by_one(model, batch, number, trie=TRIE):
    """Token log-probabilities of every answer of one sentence, from the full vocabulary."""
    net_input = helpers.select(batch["net_input"], number)
    prompt = net_input.pop("prev_output_tokens")[0, : batch["prompt_lengths"][number]].tolist()
    result = []
    for answer in trie.answers:
        tokens = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = model(**net_input, prev_output_tokens=tokens)[0][0, len(prompt) - 1 :]
        scores = []
        for at, token in enumerate([*answer, EOS]):
            allowed = trie.allowed_next(answer[:at])
            scores.append(logits[at, allowed].log_softmax(0)[allowed.index(token)])
        result.append(torch.stack(scores))
    return result


def check(hypotheses, expected, answers=ANSWERS):
    """expected: for each answer its token log-probabilities."""
    assert sorted(h["tokens"].tolist() for h in hypotheses) == sorted([*a, EOS] for a in answers)
    scores = [float(h["score"]) for h in hypotheses]
    assert scores == sorted(scores, reverse=True)
    for hypothesis in hypotheses:
        each = expected[answers.index(hypothesis["tokens"].tolist()[:-1])]
        torch.testing.assert_close(hypothesis["positional_scores"], each, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(hypothesis["score"], each.sum(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_scores_are_those_of_a_slow_loop(split, prompts):
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
def test_no_answer_depends_on_the_batch_with_exits_either(prompts):
    model, batch = helpers.nano(), sample(prompts)
    model.configure_exits(SimilarityExit(0.97, 0.97, decoder_threshold=0.9, schedule="decay"))
    generator = AllCandidateGenerator([model], TRIE, PAD)

    def run(chosen):
        limits = generator.step_limits(chosen["prompt_lengths"])
        net_input = {**chosen["net_input"], "step_limit": limits}
        hypotheses = generator.generate([model], {**chosen, "net_input": net_input})
        tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
        return hypotheses, tokens, generator.traces()[0].depths(tokens)

    together, tokens, depths = run(batch)
    used = {layers for of in depths for answer in of for layers in answer}
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
    tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
    (trace,) = generator.traces()
    decided = {5: [4, 0], 7: [4, 4, 0, 0]}  # what the trie forces runs no layer
    assert trace.depths(tokens) == [[decided[a[0]][: len(a)] for a in of] for of in tokens]
    assert trace.image_layers.tolist() == [1, 1, 0]
    model.configure_exits(None)
    generator.generate([model], batch)
    assert generator.traces() == [None]


def test_everything_runs_once_a_sentence():
    model, batch = helpers.nano(), sample(prompts=True)
    rows = []
    for layer in (model.encoder.layers[0], model.decoder.layers[0]):
        layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[:2]))
    AllCandidateGenerator([model], TRIE, PAD).generate([model], batch)
    image, text, decoder = rows
    assert image[0] == text[0] == 3
    assert decoder == (3, 4 + 1)  # the longest prompt, and 7: all that follows 8 or 9 is forced


@pytest.mark.parametrize("prompts", [False, True])
def test_answers_may_all_begin_alike(prompts):
    """The choice is then between later words, and between going on and ending."""
    model, batch = helpers.nano(), sample(prompts)
    answers = [[7, 8], [7, 8, 9], [7, 8, 9, 10, 11], [7, 8, 9, 10, 12]]
    trie = AnswerTrie(answers, EOS)
    generated = AllCandidateGenerator([model], trie, PAD).generate([model], batch)
    for number, hypotheses in enumerate(generated):
        expected = one_by_one(model, batch, number, trie)
        check(hypotheses, expected, answers)


def test_one_answer_is_refused():
    with pytest.raises(ValueError, match="only one answer"):
        AllCandidateGenerator([helpers.nano()], AnswerTrie([[5, 6]], EOS), PAD)


@pytest.mark.parametrize("prompts", [False, True])
def test_a_row_runs_until_its_choices_are_made(prompts):
    """Prompt tokens run no further than the deciding ones need, and hooks count what is traced."""
    model, batch = helpers.nano(), sample(prompts)
    model.configure_exits(SimilarityExit(2.0, 2.0, decoder_threshold=0.9, schedule="static"))
    rows = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    generator = AllCandidateGenerator([model], TRIE, PAD)
    generator.generate([model], batch)
    (step,) = generator.traces()[0].steps
    assert sum(rows) == int(step.ran.sum())
    needed = torch.tensor([max(of.values()) for of in generator.traces()[0].decided()])
    assert (step.ran >= needed).all() and int(step.ran.max()) == int(needed.max())
    assert step.asked.tolist() == [2, 2, 2]


def test_step_limits_count_prompt_and_longest_answer():
    generator = AllCandidateGenerator([helpers.nano()], TRIE, PAD)
    assert generator.step_limits(torch.tensor([1, 5])).tolist() == [4, 8]


def test_broken_weights_are_told_by_sample():
    model, batch = helpers.nano(), sample(prompts=False)
    batch["net_input"]["patch_images"][1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"1 of 3 samples of a batch: s1\. "):
        AllCandidateGenerator([model], TRIE, PAD).generate([model], batch)


def test_nothing_can_be_forced():
    model, batch = helpers.nano(), sample(prompts=False)
    with pytest.raises(ValueError, match="closed set"):
        AllCandidateGenerator([model], TRIE, PAD).generate(
            [model], batch, prefix_tokens=torch.tensor([[5], [5], [5]])
        )

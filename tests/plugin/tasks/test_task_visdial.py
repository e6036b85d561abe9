"""Visual dialogue: data, rankings against a slow loop, exits, validation, and the commands."""

import pytest
import torch
from fairseq.logging import metrics
from helpers import small_models as helpers
from helpers import task_files as files

from ofa_exit.evaluation.metrics.visdial import ndcg
from ofa_exit.plugin.tasks.visdial import RankingGenerator
from ofa_exit.policies.similarity import SimilarityExit

TASK = "mue_visdial"
PAD, EOS = 1, 2
WORDS = (*files.WORDS, "it", "is", "big", "small", "yes,", "very", "picture", "square.")
EXITS = {
    "exit_policy": "similarity",
    **{f"exit_{part}_threshold": 0.9 for part in ("image", "text", "decoder")},
}


def row(number: int, kind: str = "valid") -> list[str]:
    colour = files.COLOURS[number % 6]
    others = [c for c in files.COLOURS if c != colour]
    answers = [f"it is {c}" for c in others[:3]] + ["yes, very", f"it is {colour}", "It is red"]
    true, relevance = 4, "&&".join(["0", "0.2", "0", "0", "1", "0"]) if number % 2 else ""
    if kind == "train":
        answers, true, relevance = [f"it is {colour}"], 0, ""
    return [
        *(f"{number}_1", f"i{number}", "a picture of a square.", "What is it?"),
        *("&&".join(answers), "" if kind == "test" else str(true), relevance),
        files.image_field(colour),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = files.write_dictionary(tmp_path_factory.mktemp("visdial"), WORDS)
    files.write_tsv(folder / "train.tsv", [row(n, "train") for n in range(12)])
    files.write_tsv(folder / "valid.tsv", [row(n) for n in range(9)])
    files.write_tsv(folder / "test.tsv", [row(n) for n in range(9)])
    files.write_tsv(folder / "hidden.tsv", [row(n, "test") for n in range(3)])
    return folder


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return files.train(
            *(TASK, data, tmp_path_factory.mktemp("checkpoint"), "--eval-mrr", "--eval-ndcg"),
            *("--best-checkpoint-metric", "ndcg", "--maximize-best-checkpoint-metric"),
            updates=3,
        )


@pytest.fixture(scope="module")
def models(data, checkpoint):
    return files.load(files.setup(TASK, data), checkpoint)


# ---------------------------------------------------------------------- rankings

CANDIDATES = [
    [[5, 6], [5, 7, 8], [9], [5, 6], [10, 11, 12, 13]],
    [[9], [20, 21], [22]],
    [[5, 6, 7], [5, 6, 8], [5, 6], [14], [15], [16, 17]],
]


def sample():
    net_input = helpers.batch(3)
    return {
        "uniq_ids": ["a", "b", "c"],
        "net_input": net_input,
        "prompt_lengths": torch.tensor([1, 1, 1]),
        "candidates": CANDIDATES,
    }


def likelihoods(model, batch, number):
    net_input = helpers.select(batch["net_input"], number)
    net_input.pop("prev_output_tokens")
    found = []
    for candidate in batch["candidates"][number]:
        with torch.no_grad():
            prev = torch.tensor([[0, *candidate]])
            lprobs = model(**net_input, prev_output_tokens=prev)[0][0].log_softmax(dim=1)
        found.append(sum(float(lprobs[t, token]) for t, token in enumerate([*candidate, EOS])))
    return torch.tensor(found)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("room", [2, 128])
def test_candidates_are_ranked_by_their_likelihood(room, normalized, monkeypatch):
    monkeypatch.setattr("ofa_exit.plugin.search.candidates.MAX_SCORES_AT_ONCE", 5 * helpers.VOCAB)
    model, batch = helpers.nano(), sample()
    monkeypatch.setattr("ofa_exit.data.answer_tree.TOKENS_PER_ROW", room)
    generator = RankingGenerator([model], PAD, EOS, torch.tensor, normalized)
    for number, (ranking,) in enumerate(generator.generate([model], batch)):
        expected = likelihoods(model, batch, number)
        if normalized:
            expected = expected / torch.tensor([len(c) + 1.0 for c in CANDIDATES[number]])
        order = ranking["tokens"].tolist()
        assert sorted(order) == list(range(len(expected)))
        torch.testing.assert_close(
            ranking["positional_scores"], expected[order], atol=1e-4, rtol=1e-4
        )
        if number == 0:  # ties keep the order of the candidates
            assert order.index(0) + 1 == order.index(3)


def test_exits_do_not_depend_on_the_batch_or_the_size_of_rows(monkeypatch):
    model, batch = helpers.nano(), sample()
    model.configure_exits(SimilarityExit(0.97, 0.97, decoder_threshold=0.9, schedule="static"))

    def run(chosen, room):
        monkeypatch.setattr("ofa_exit.data.answer_tree.TOKENS_PER_ROW", room)
        generator = RankingGenerator([model], PAD, EOS, torch.tensor)
        rankings = generator.generate([model], chosen)
        return rankings, [layers for (layers,) in generator.traces()[0].depths([])]

    together, depths = run(batch, 128)
    assert len({layers for used in depths for layers in used}) > 1
    assert run(batch, 2)[1] == depths
    for number in range(3):
        alone = {
            "uniq_ids": ["x"],
            "net_input": helpers.select(batch["net_input"], number),
            "prompt_lengths": torch.tensor([1]),
            "candidates": [CANDIDATES[number]],
        }
        (ranking,), own = run(alone, 128)
        assert own[0] == depths[number]
        torch.testing.assert_close(
            ranking[0]["positional_scores"],
            together[number][0]["positional_scores"],
            atol=1e-4,
            rtol=1e-4,
        )


# ---------------------------------------------------------------------- data


def test_a_row_as_the_model_reads_it(data):
    task = files.setup(TASK, data, max_src_length=7)
    task.load_dataset("valid")
    example = task.dataset("valid")[1]
    words = [task.dictionary[t] for t in example.source.tolist()]
    assert words == ["<s>", "of", "a", "square.", "what", "is", "it", "?", "</s>"] or words == [
        *["<s>", "picture", "of", "a", "square.", "what", "is", "it", "?", "</s>"]
    ]
    assert example.references == ["4", "0", "0.2", "0", "0", "1", "0"]
    assert len(example.candidates) == 6
    assert example.target.tolist() == [*example.candidates[4], EOS]


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        (4, "it is red&& &&big", "candidate 1 .* of 3 is empty"),
        (5, "6", "'6' is not the number of one of the 6 candidates"),
        (6, "0&&1", "not 6 numbers"),
        (6, "0&&0&&0&&0&&0&&inf", "not 6 numbers"),
        (6, "0&&0&&0&&0&&0&&0", "0 for every candidate"),
        (2, "", "the field is empty"),
    ],
)
def test_bad_rows_are_rejected_by_line(tmp_path, column, text, message):
    folder = files.write_dictionary(tmp_path / "data", WORDS)
    bad = row(1)
    bad[column] = text
    files.write_tsv(folder / "valid.tsv", [row(0), bad])
    task = files.setup(TASK, folder)
    task.load_dataset("valid")
    with pytest.raises(ValueError, match=rf"(line |:)2\b.*{message}"):
        task.dataset("valid")[1]


# ---------------------------------------------------------------------- commands


def test_generation_is_ranked_scored_and_reported(data, checkpoint, models):
    task = files.setup(TASK, data, **EXITS)
    found = files.generate_rows(task, models)
    summary = task.exit_reports[0].summary()
    assert summary["sentences"] == 9 and summary["flop_reduction"] > 0
    lines = files.generate(
        *(TASK, data, checkpoint, "--scoring", "visdial", "--exit-policy", "similarity"),
        *("--exit-image-threshold", "0.9", "--exit-text-threshold", "0.9"),
        *("--exit-decoder-threshold", "0.9"),
    )
    ranks = []
    for number in range(9):
        order = list(map(int, lines["D"][number][0][1].split()))
        assert " ".join(map(str, order)) == found[number][0]["words"]
        assert sorted(order) == list(range(6))
        ranks.append([order.index(candidate) + 1 for candidate in range(6)])
    mrr = 100 * sum(1 / r[4] for r in ranks) / 9
    gain = [ndcg(r, [0, 0.2, 0, 0, 1, 0]) for r in ranks[1::2]]
    assert f"NDCG = {100 * sum(gain) / 4:.2f}" in lines["result"].replace(": ", " = ")
    assert f"{mrr:.2f}" in lines["result"]


def test_validation_reports_mrr_and_ndcg(data, checkpoint, models):
    task = files.setup(TASK, data)
    found = files.generate_rows(task, models)
    orders = [list(map(int, found[n][0]["words"].split())) for n in range(9)]
    expected = 100 * sum(1 / (order.index(4) + 1) for order in orders) / 9
    metrics.reset()
    with metrics.aggregate() as seen:
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "2", "--eval-mrr")
    logged = seen.get_smoothed_values()
    assert logged["mrr"] == pytest.approx(expected, abs=0.01)
    # The task's accuracy: the true answer is ranked first.
    first = sum(order[0] == 4 for order in orders)
    assert logged["acc"] == pytest.approx(100 * first / 9, abs=0.01)
    best = torch.load(checkpoint.parent / "checkpoint_best.pt")["extra_state"]["best"]
    assert 0 < best <= 100


def test_rounds_without_a_relevant_candidate_are_rejected_everywhere(
    models, data, checkpoint, tmp_path
):
    """In generation, validation and scorer: NDCG would be 0/0 (NaN in the published code)."""
    folder = files.write_dictionary(tmp_path / "data", WORDS)
    files.write_tsv(folder / "valid.tsv", [[*row(1)[:6], "0&&0&&0&&0&&0&&0", row(1)[7]]])
    with pytest.raises(ValueError, match=r"valid\.tsv.*(line |:)1\b.*relevance"):
        files.generate(TASK, folder / "valid.tsv", checkpoint)
    task = files.setup(TASK, data, eval_ndcg=True)
    sample = {"references": [["4", *"000000"]], "uniq_ids": ["1_1"]}
    with pytest.raises(ValueError, match="relevance"):
        task.validation_sums(sample, ["0 1 2 3 4 5"])


def test_validation_rejects_a_round_without_a_true_answer_by_line(data):
    """When the round is read, so before the first update."""
    task = files.setup(TASK, f"{data}/hidden.tsv", eval_mrr=True)
    task.load_dataset("valid")
    with pytest.raises(ValueError, match=r"hidden\.tsv.*(line |:)2\b.*gt_index"):
        task.dataset("valid")[1]


def test_a_split_without_answers_is_ranked(data, checkpoint):
    lines = files.generate(TASK, f"{data}/hidden.tsv", checkpoint)
    assert all(len(lines["D"][n][0][1].split()) == 6 for n in range(3))


def test_search_options_are_rejected(data, models):
    with pytest.raises(ValueError, match="--beam is not supported"):
        files.generate_rows(files.setup(TASK, data), models, beam=1)

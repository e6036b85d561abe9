"""Questions with one answer, or with answers that have a score: from training to comparison."""

import csv
import json
import logging

import pytest
import torch
from fairseq.logging import metrics
from helpers import task_files as files
from helpers.vqa_samples import WORDS, row

from ofa_exit.cli import main as cli
from ofa_exit.cli import sweep
from ofa_exit.evaluation.metrics.weighted_answers import answer_score, exact_match

TASK = "mue_vqa"
BEST = ("--best-checkpoint-metric", "acc", "--maximize-best-checkpoint-metric")


@pytest.fixture(scope="module", params=["one", "weighted"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def data(kind, tmp_path_factory):
    folder = files.write_dictionary(tmp_path_factory.mktemp(kind), WORDS)
    files.write_tsv(folder / "train.tsv", [row(n, "one") for n in range(12)])
    for split in ("valid", "test"):
        files.write_tsv(folder / f"{split}.tsv", [row(n, kind) for n in range(9)])
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A checkpoint, and what its validations logged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        folder = tmp_path_factory.mktemp("checkpoint")
        return files.train(
            TASK, data, folder, "--eval-acc", *BEST, "--eval-args", '{"beam": 2}', updates=40
        )


def pairs(kind: str, number: int) -> list[tuple[float, str]]:
    parts = [part.split("|!+") for part in row(number, kind)[3].split("&&")]
    return [(float(conf), text.lower()) for conf, text in parts]


def expected(kind: str, predictions: dict[int, str]) -> tuple[float, float]:
    """OFA's score and exact match in percent, counted by hand."""
    scores = [{t: c for c, t in pairs(kind, n)}.get(p, 0) for n, p in predictions.items()]
    exact = [p == max(pairs(kind, n))[1] for n, p in predictions.items()]
    return 100 * sum(scores) / len(scores), 100 * sum(exact) / len(exact)


def test_training_keeps_the_most_accurate_checkpoint(data, trained, kind):
    best = torch.load(trained.parent / "checkpoint_best.pt")["extra_state"]["best"]
    metrics.reset()
    with metrics.aggregate() as seen:
        files.validate(
            *(data, trained.parent / "checkpoint_best.pt", "--task", TASK, "--batch-size", "4"),
            *("--eval-acc", "--eval-args", '{"beam": 2}'),
        )
    logged = seen.get_smoothed_values()
    assert logged["acc"] == logged["vqa_acc"] == pytest.approx(best, abs=0.01)
    lines = files.generate(
        TASK, data, trained.parent / "checkpoint_best.pt", "--beam", "2", "--max-len-b", "20",
        "--gen-subset", "valid",
    )  # fmt: skip
    score, exact = expected(kind, {n: lines["D"][n][0][1] for n in range(9)})
    assert logged["acc"] == pytest.approx(exact if kind == "one" else score, abs=0.01)
    assert logged["vqa_score"] == pytest.approx(score / 100, abs=1e-3)
    assert score > 0  # it has learned colours


def generated(data, trained, *more):
    return files.generate(TASK, data, trained, "--max-len-b", "4", *more)


def test_generation_prints_scores_and_is_scored_by_them(data, trained, kind):
    lines = generated(data, trained, "--scoring", "vqa")
    references = lines["T"][1][0][0]
    assert references == ("green" if kind == "one" else "0.6|!+green && 1.0|!+dark green")
    score, exact = expected(kind, {n: lines["D"][n][0][1] for n in range(9)})
    assert lines["result"].endswith(
        f"accuracy = {exact:.2f} (exact match of 9 questions)"
        if kind == "one"
        else f"accuracy = {score:.2f} exact_match = {exact:.2f} (OFA's score of 9 questions)"
    )


def test_the_official_scorer_names_the_other_one(data, trained):
    with pytest.raises(ValueError, match=r"those of 10 .*--scoring vqa"):
        generated(data, trained, "--scoring", "vqa_accuracy")


def test_sweeps_score_every_setting(data, trained, kind, tmp_path):
    (tmp_path / "grid.json").write_text('[{}, {"exit_policy": "static", "exit_depths": "2,3,1"}]')
    arguments = files.generate_arguments(TASK, data, trained, "--scoring", "vqa")
    arguments += ["--max-len-b", "4"]
    out = tmp_path / "sweep.csv"
    assert sweep.main([str(tmp_path / "grid.json"), str(out), *arguments]) == 0
    rows = list(csv.DictReader(out.open()))
    lines = generated(data, trained)
    score, exact = expected(kind, {n: lines["D"][n][0][1] for n in range(9)})
    accuracy = exact if kind == "one" else score
    assert float(rows[0]["accuracy"]) == pytest.approx(accuracy, abs=1e-3)
    assert ("exact_match" in rows[0]) == (kind == "weighted")


def test_result_files_are_scored_from_the_data(data, trained, kind, tmp_path, capsys):
    lines = generated(data, trained)
    printed = [f"D-{n}\t-1.0\t{lines['D'][n][0][1]}\n" for n in range(9)]
    (tmp_path / "generate-test.txt").write_text("".join(printed))
    results, tsv = tmp_path / "results.json", data / "test.tsv"
    cli.main(["submit", "vqa_tsv", str(tmp_path / "generate-test.txt"), str(tsv), str(results)])
    capsys.readouterr()
    score = ["score", "vqa_tsv", "--results", str(results), "--annotations", str(tsv)]
    assert cli.main(score) == 0
    found = capsys.readouterr().out
    numbers = expected(kind, {n: lines["D"][n][0][1] for n in range(9)})
    assert f"exact match = {numbers[1]:.2f}" in found and "(9 questions)" in found
    assert (f"OFA's score = {numbers[0]:.2f}" in found) == (kind == "weighted")
    entries = json.loads(results.read_text())
    results.write_text(json.dumps(entries[1:]))
    assert cli.main(score) == 2
    assert "question q0" in capsys.readouterr().err


# ---------------------------------------------------------------------- one prediction


def test_the_score_of_an_answer():
    answers = [(0.6, "no"), (1.0, "Yes"), (1.0, "yeah")]
    assert [answer_score(text, answers) for text in ("no", "yes", "YEAH ", "maybe", "")] == [
        *[0.6, 1, 1, 0, 0]
    ]
    assert [exact_match(text, answers) for text in ("no", "yes", "yeah", "maybe")] == [0, 1, 1, 0]
    # The best of a row counts, even below 1; and spaces around symbols are those of the codec.
    assert exact_match("no", [(0.3, "no")]) == 1 and answer_score("no", [(0.3, "no")]) == 0.3
    assert answer_score('a " red " one ?', [(1.0, 'a "red" one?')]) == 1


# ---------------------------------------------------------------------- before the first update


def folder_of(tmp_path, rows):
    folder = files.write_dictionary(tmp_path / "data", WORDS)
    files.write_tsv(folder / "train.tsv", [row(n, "one") for n in range(4)])
    files.write_tsv(folder / "valid.tsv", rows)
    return folder


def answered(number: int, answers: str) -> list[str]:
    given = row(number, "one")
    given[3] = answers
    return given


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([row(0, "test")], [], r"valid\.tsv.* --eval-acc needs answers"),
        ([row(0), row(1, "one")], [], r"valid\.tsv.*10 annotators.*--vqa-metric"),
        ([row(0, "one"), row(1, "test")], [], r"(line |:)2\b.*no answer"),
        (
            [answered(0, "&&".join(["1.0|!+red"] * 9))],
            [],
            r"(line |:)1\b.*9 answers, 'red' among them 9 times.*10 annotators",
        ),
        ([row(0, "one")], ["--vqa-metric", "vqa_accuracy"], r"(line |:)1\b.*those of 10"),
        ([row(0), row(1)], ["--vqa-metric", "exact_match"], r"(line |:)1\b.*10 answers"),
        ([row(0), row(1), answered(2, "1.0|!+red")], ["--vqa-metric", "vizwiz_accuracy"],
         r"(line |:)3\b.*1 answers"),
    ],
)  # fmt: skip
def test_what_validation_cannot_score_is_rejected(tmp_path, rows, options, message, monkeypatch):
    updates = []
    monkeypatch.setattr(
        "ofa_exit.plugin.tasks.base.OFATask.train_step", lambda *a, **k: updates.append(a)
    )
    with pytest.raises(ValueError, match=message):
        files.train(
            TASK, folder_of(tmp_path, rows), tmp_path / "out", "--eval-acc", *options, *BEST
        )
    assert not updates


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (TASK, ["--best-checkpoint-metric", "acc"], r"metric acc: .*--eval-acc"),
        (TASK, ["--best-checkpoint-metric", "vqa_score"], r"vqa_score: .*--eval-acc"),
        (TASK, ["--best-checkpoint-metric", "cider", "--eval-acc"], r"cider: .*vqa_acc .*or loss"),
        ("mue_caption", ["--best-checkpoint-metric", "acc"], r"acc: .*cider \(--eval-cider\)"),
        ("mue_snli_ve", ["--best-checkpoint-metric", "snli_score"], r"snli_score: .*--eval-acc"),
    ],
)
def test_a_metric_that_validation_does_not_log_is_rejected(tmp_path, task, options, message):
    with pytest.raises(ValueError, match=message):
        files.train(task, folder_of(tmp_path, [row(0)]), tmp_path / "out", *options)


def test_keeping_the_lowest_accuracy_is_worth_a_warning(tmp_path, caplog):
    folder = folder_of(tmp_path, [row(0)])
    for more, warned in (([], True), (["--maximize-best-checkpoint-metric"], False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            files.train(
                *(TASK, folder, tmp_path / "out", "--eval-acc", "--no-save"),
                *("--best-checkpoint-metric", "acc", *more),
                updates=1,
            )
        assert ("--maximize-best-checkpoint-metric" in caplog.text) == warned


def test_ten_annotators_keep_the_official_accuracy(tmp_path, caplog):
    folder = folder_of(tmp_path, [row(n) for n in range(3)])
    task = files.setup(TASK, folder, eval_acc=True)
    with caplog.at_level(logging.INFO):
        task.load_dataset("valid")
    assert task.measures["valid"].title == "VQA accuracy" and "VQA accuracy" in caplog.text
    batch = task.dataset("valid").collater([task.dataset("valid")[0]])
    batch["subset"] = "valid"
    sums = task.validation_sums(batch, ["dark"])  # two of ten: 0.6
    assert sums["_vqa_sum"] == sums["_vqa_score_sum"] == pytest.approx(0.6)

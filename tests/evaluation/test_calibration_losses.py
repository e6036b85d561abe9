"""Losses per sentence, the file that keeps them, and the coverage experiment."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import coverage as command
from ofa_exit.cli.calibrate.metrics import losses_of
from ofa_exit.evaluation.calibration import coverage as coverage_module
from ofa_exit.evaluation.calibration import losses as per_sentence
from ofa_exit.evaluation.calibration import statistics
from ofa_exit.evaluation.calibration.coverage import coverage
from ofa_exit.evaluation.calibration.losses import Sentence, SentenceFile, read_sentences
from ofa_exit.evaluation.calibration.statistics import split_rows
from ofa_exit.plugin.errors import UsageError

RUN = {"settings": [{}, {"exit_alpha": 0.9}], "task": {"kind": "snli_ve"}}


def sentence(row: int, texts: list[str], references=None, **costs) -> Sentence:
    values = {name: costs.get(name, [1.0] * len(texts)) for name in per_sentence.COSTS}
    return Sentence(row, ["yes"] if references is None else references, texts, values)


def test_consistency_is_relative_to_the_full_model():
    rows = [sentence(0, ["yes", "no", "yes"]), sentence(1, ["no", "no", " no"])]
    losses, scores = losses_of(rows, "consistency", "snli_ve")
    assert losses.tolist() == [[0, 0], [1, 0], [0, 0]] and scores is None


def test_consistency_of_captions_is_rouge_l():
    rows = [sentence(0, ["a red dog", "a dog", "A red dog!", "", "two cats"])]
    losses, _ = losses_of(rows, "consistency", "caption")
    # longest common subsequence "a dog": precision 1, recall 2/3, beta 1.2
    f = (1 + 1.44) * 1 * (2 / 3) / (2 / 3 + 1.44 * 1)
    assert losses[:, 0] == pytest.approx([0, 1 - f, 0, 1, 1])


def test_accuracy_counts_what_exits_spoil_and_no_gain():
    rows = [sentence(0, ["yes", "no"]), sentence(1, ["no", "yes"]), sentence(2, ["yes", "yes"])]
    losses, scores = losses_of(rows, "accuracy", "snli_ve")
    assert losses.tolist() == [[0, 0, 0], [1, 0, 0]] and scores.tolist() == [1, 0, 1]


def test_cider_is_clipped_to_one():
    references = [["a red dog runs"], ["the sky is blue today"], ["a cat on a mat"]]
    texts = [["a red dog runs", "a red cat"], ["sky", "sky"], ["x", "a cat on a mat"]]
    # Ten times each: a third of the rows, whose n-grams are counted, has all of them.
    pairs = list(zip(texts, references)) * 10
    rows = [sentence(n, text, own) for n, (text, own) in enumerate(pairs)]
    losses, scores = losses_of(rows, "cider", "caption")
    assert 0.5 < scores[0] <= 1 and scores[2] == 0
    assert 0 < losses[1, 0] <= scores[0] and losses[1, 2] == 0


def test_cider_counts_no_ngrams_of_the_rows_that_test():
    """Otherwise the losses of these rows would depend on each other."""
    finding, testing = split_rows(30)
    rows = [sentence(n, ["a red dog", "a red cat"], [f"a red dog {n % 4}"]) for n in range(30)]
    before = losses_of(rows, "cider", "caption")[0][1, testing[0]]
    rows[testing[1]] = sentence(testing[1], ["sky", "sky"], ["all of the sky is blue"])
    assert losses_of(rows, "cider", "caption")[0][1, testing[0]] == before
    rows[finding[0]] = sentence(finding[0], ["sky", "sky"], ["all of the sky is blue"])
    assert losses_of(rows, "cider", "caption")[0][1, testing[0]] != before


def test_vqa_takes_the_measure_that_fits():
    ten = ["yes"] * 3 + ["no"] * 7
    rows = [sentence(0, ["no", "yes"], ten), sentence(1, ["no", "maybe"], ten)]
    losses, scores = losses_of(rows, "vqa", "vqa")
    assert scores == pytest.approx([1, 1]) and losses[1] == pytest.approx([0.1, 1])
    with pytest.raises(UsageError, match="--metric vqa"):
        losses_of([*rows, sentence(2, ["no", "no"])], "vqa", "vqa")


def test_a_file_resumes_without_its_broken_line(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    rows = [sentence(3, ["yes", "no\u2028"], time=[2.0, 1.5]), sentence(1, ["a", "a"], [])]
    SentenceFile(path, RUN).append(rows)
    with path.open("a") as stream:
        stream.write('{"row": 7, "ref')
    again = SentenceFile(path, RUN)
    assert again.rows == {1, 3} and again.sentences == [rows[1], rows[0]]
    assert read_sentences(path)[1] == again.sentences
    again.append([sentence(7, ["b", "b"])])
    assert SentenceFile(path, RUN).rows == {1, 3, 7}
    again.append([sentence(7, ["c", "c"]), sentence(8, ["d", "d"])])
    assert [one.texts[0] for one in read_sentences(path)[1]] == ["a", "yes", "b", "d"]


def test_a_torn_first_line_is_written_again(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    SentenceFile(path, RUN)
    whole = path.read_bytes()
    for size in (0, 1, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        SentenceFile(path, RUN)
        assert path.read_bytes() == whole


def test_files_of_another_run_are_rejected(tmp_path):
    path = tmp_path / "x.rows.jsonl"
    SentenceFile(path, RUN).append([sentence(0, ["a", "a"])])
    with pytest.raises(ValueError, match=r"another run \(task\).*another --out"):
        SentenceFile(path, {**RUN, "task": {"kind": "vqa"}})
    with pytest.raises(ValueError, match="no times and FLOPs"):
        SentenceFile(path, RUN, is_complete=True)
    for text in ("{}\n", "nonsense\n", json.dumps(RUN) + '\n{"row": 1}\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no sentences"):
            SentenceFile(path, RUN)
    for text in ("{}", "notes of mine", '{"settings": 3}\nnotes', "one\ntwo", "\xff".encode()):
        content = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no sentences"):
            SentenceFile(path, RUN)
        assert path.read_bytes() == content
    timed = tmp_path / "timed.rows.jsonl"
    SentenceFile(timed, RUN, is_complete=True)
    assert SentenceFile(timed, RUN).is_complete


def simulated(rows: int):
    draw = np.random.default_rng(7)
    rates = np.array([0, 0.01, 0.03, 0.05, 0.06, 0.1])
    losses = (draw.random((len(rates), rows)) < rates[:, None]).astype(float)
    return losses, np.linspace(1, 0.5, len(rates))[:, None].repeat(rows, axis=1)


def test_a_choice_without_a_test_breaks_the_promise_more_often():
    losses, costs = simulated(1600)
    calibrated, untested = coverage(lambda finding: (losses, None), costs, 0.945, 0.9, splits=100)
    assert calibrated.broken_pool <= 0.1 + 3 * 0.03
    assert untested.broken_pool > calibrated.broken_pool
    assert untested.saved > calibrated.saved > 0


def test_rows_of_an_image_stay_together_and_each_split_measures_by_its_own_rows(monkeypatch):
    losses, costs = simulated(60)
    images = np.array([f"image {row // 3}" for row in range(60)])
    given, measured = [], []

    def spy(losses, costs, keep, confidence, scores, seed, own_counts):
        found = statistics.calibrate(losses, costs, keep, confidence, scores, seed, own_counts)
        given.append((losses[0].astype(int), seed))
        return found

    numbers = np.arange(60.0)[None].repeat(len(losses), axis=0)

    def measure(finding):
        measured.append(finding)
        return numbers, np.ones(60)

    monkeypatch.setattr(coverage_module, "calibrate", spy)
    coverage(measure, costs, 0.9, 0.9, images, splits=4, own_counts=True)
    assert len({tuple(rows) for rows, _ in given}) == 4
    for (rows, seed), finding in zip(given, measured, strict=True):
        assert len(rows) == 30 and len(set(images[rows])) == 10
        assert finding.tolist() == rows[split_rows(30, seed)[0]].tolist()


def test_the_command_prints_both_rules(tmp_path, capsys):
    losses, costs = simulated(300)
    path = tmp_path / "x.rows.jsonl"
    run = {**RUN, "settings": [{}] * len(losses)}
    SentenceFile(path, run).append(
        sentence(row, ["no" if loss else "yes" for loss in losses[:, row]],
                 flops=costs[:, row].tolist())
        for row in range(300)
    )  # fmt: skip
    command.main([str(path), "--splits", "5", "--keep", "0.9"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "300 rows, 6 settings, 5 splits"
    assert out[1].startswith("calibrated  broken") and out[2].startswith("untested")


def test_the_command_takes_images_and_counts_ngrams_of_each_split(tmp_path, capsys, monkeypatch):
    path, rows = tmp_path / "x.rows.jsonl", []
    for row in range(40):
        one = sentence(row, ["a red dog", "a red cat"], [f"a red dog {row % 4}"])
        rows.append(dataclasses.replace(one, image=f"{row % 10}"))
    SentenceFile(path, {**RUN, "task": {"kind": "caption"}}).append(rows)
    assert read_sentences(path)[1] == rows
    seen = []
    monkeypatch.setattr(
        command, "losses_of", lambda *given: seen.append(given[3]) or losses_of(*given)
    )
    command.main([str(path), "--splits", "3", "--metric", "cider"])
    assert capsys.readouterr().out.startswith("40 rows of 10 images, 2 settings, 3 splits")
    assert len({tuple(finding) for finding in seen}) == 3

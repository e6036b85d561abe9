"""SNLI-VE's accuracy over saved results."""

import json

import pytest
from helpers.prepare_samples import snli_entry

from ofa_exit.cli import score, submit
from ofa_exit.data.snli_ve import parse_labels
from ofa_exit.evaluation.metrics.snli_ve import ANSWERS, LABELS, label_of, score_snli_ve

GOLD = ("entailment", "neutral", "contradiction", "neutral")


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "snli_ve_test.jsonl"
    lines = [json.dumps(snli_entry("7", number, label)) for number, label in enumerate(GOLD)]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def names():
    return [snli_entry("7", number, label)["pairID"] for number, label in enumerate(GOLD)]


def saved(tmp_path, *answers):
    path = tmp_path / "results.json"
    entries = [{"pairID": name, "prediction": answer} for name, answer in zip(names(), answers)]
    path.write_text(json.dumps(entries))
    return path


def test_accuracy_and_accuracy_per_label(tmp_path, annotations):
    results = saved(tmp_path, "yes", "neutral", "Entailment", "no")
    scores = score_snli_ve(results, annotations)
    assert scores.values == {"accuracy": 50} and scores.counted == 4
    assert list(scores.breakdowns["label"].items()) == [
        ("entailment", (100, 1)),
        ("neutral", (50, 2)),
        ("contradiction", (0, 1)),
    ]


def test_answers_equal_those_of_the_data():
    assert {label: answer for answer, label in ANSWERS.items()} == {
        label: answer for label, answer in parse_labels(None).items() if label not in ANSWERS
    }
    assert [label_of(answer) for answer in (" yes ", "maybe", "NO")] == list(LABELS)


def test_files_that_do_not_fit_raise(tmp_path, annotations):
    with pytest.raises(ValueError, match=r"no result for 1 of 4 .*: pair 7\.jpg#3r1n"):
        score_snli_ve(saved(tmp_path, "yes", "no", "no"), annotations)
    partly = score_snli_ve(saved(tmp_path, "yes", "no", "no"), annotations, allow_missing=True)
    assert partly.counted == 3 and "only 3 of 4" in partly.notes[0]
    with pytest.raises(ValueError, match=r"results.json, pairID 7.jpg#1r1n: the answer 'a dog'"):
        score_snli_ve(saved(tmp_path, "yes", "a dog", "no", "no"), annotations)
    whole = saved(tmp_path, "yes", "no", "no", "no")
    annotations.write_text(annotations.read_text().replace('"neutral"', '"-"', 2))
    with pytest.raises(ValueError, match=r"pairID 7.jpg#1r1n: gold_label '-', none of"):
        score_snli_ve(whole, annotations)
    annotations.write_text("{}\n{\n")
    with pytest.raises(ValueError, match=r"test.jsonl, line 2: no JSON"):
        score_snli_ve(whole, annotations)


def test_from_generation_to_accuracy(tmp_path, annotations, capsys):
    answers = ("yes", "maybe", "maybe", "no")
    generated, tsv = tmp_path / "generate-test.txt", tmp_path / "test.tsv"
    generated.write_text("".join(f"D-{n}\t-0.1\t{text}\n" for n, text in enumerate(answers)))
    tsv.write_text("".join(f"{name}\t7\timage\th\tp\tneutral\n" for name in names()))
    out = tmp_path / "out.json"
    assert submit.main(["snli_ve", str(generated), str(tsv), str(out)]) == 0
    assert json.loads(out.read_text())[2] == {"pairID": names()[2], "prediction": "neutral"}
    given = ["snli_ve", "--results", str(out), "--annotations", str(annotations)]
    assert score.main(given) == 0
    assert "accuracy = 50.00\n(4 pairs)" in capsys.readouterr().out
    generated.write_text("D-0\t-0.1\ta dog\n")
    tsv.write_text(tsv.read_text().splitlines(keepends=True)[0])
    assert submit.main(["snli_ve", str(generated), str(tsv), str(out)]) == 2
    assert "test.tsv, line 1: the answer 'a dog' is none of yes" in capsys.readouterr().err

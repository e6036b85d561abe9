"""VQA-RAD: its splits, duplicates, untidy fields, and what is rejected."""

from __future__ import annotations

import json

import pytest
from helpers import prepare_samples as samples
from helpers.prepare_samples import manifest, prepare, rows
from helpers.task_files import setup

SOURCE = "VQA_RAD Dataset Public.json"


@pytest.fixture
def root(tmp_path):
    samples.vqa_rad(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def texts(path) -> list[list[str]]:
    return [row[:4] for row in rows(path)]


def changed(root, number: int, **fields) -> None:
    source = root / SOURCE
    content = json.loads(source.read_text())
    content[number].update(fields)
    source.write_text(json.dumps(content))


def test_fields_are_tidied_and_splits_made(root, out):
    """Ids as text and as numbers, stray spaces, mixed case, an answer that is a number."""
    assert prepare("vqa_rad", root, out) == 0
    assert texts(out / "train.tsv") == [
        ["0", "synpic1", "is it a lung?", "1.0|!+yes"],
        ["1", "synpic1", "does this show a lung?", "1.0|!+yes"],
        ["4", "synpic2", "how many kidneys?", "1.0|!+2"],
    ]
    assert texts(out / "valid.tsv") == [
        ["2", "synpic2", "where is the mass?", "1.0|!+left lobe"],
        ["3", "synpic2", "where does the mass lie?", "1.0|!+left lobe"],
    ]
    closed = ["7", "synpic1", "is it normal?", "1.0|!+no"]
    open_ = ["8", "synpic1", "what plane is this?", "1.0|!+axial"]
    assert texts(out / "test.tsv") == [closed, open_]
    assert texts(out / "test_closed.tsv") == [closed]
    assert texts(out / "test_open.tsv") == [open_]


def test_duplicates_are_counted_and_counts_compared(root, out, capsys):
    assert prepare("vqa_rad", root, out) == 0
    printed = capsys.readouterr().err
    assert "train.tsv is not the published split: 7 questions, published 1,797" in printed
    assert "test.tsv is not the published split: 2 questions, published 451" in printed
    assert manifest(out / "train.tsv")["left_out"] == {
        "questions of the test split": 1,
        "questions of valid.tsv": 2,
        "repeated questions": 1,
    }
    assert "1 questions of the test split, 2 questions of valid.tsv, 1 repeated" in printed


def test_training_and_validation_together_on_request(root, out):
    assert prepare("vqa_rad", root, out, "--splits", "trainval", "test") == 0
    assert [row[0] for row in texts(out / "trainval.tsv")] == ["0", "1", "2", "3", "4"]
    assert {path.stem for path in out.glob("*.tsv")} == {"trainval", "test"}


def test_the_task_reads_what_is_prepared(root, out):
    """The answers and the dictionary are those of the training questions."""
    assert prepare("vqa_rad", root, out) == 0
    # The question that stands in the test split counts: its answer is a training answer, too.
    assert (out / "answers.txt").read_text() == "2\nleft lobe\nyes\nno\n"
    words = {line.split()[0] for line in (out / "dict.txt").read_text().splitlines()}
    assert {"2", "left", "lobe", "yes", "kidneys", "mass", "?"} < words and "axial" not in words
    task = setup("mue_vqa", out, answers=str(out / "answers.txt"), vqa_metric="gqa_accuracy")
    for split, unknown in (("train", 0), ("valid", 0), ("test_closed", 0), ("test_open", 1)):
        task.load_dataset(split)
        dataset = task.dataset(split)
        found = [word for row in range(len(dataset)) for word in dataset[row].unknown]
        assert bool(found) == bool(unknown), (split, found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": " "}, "0: the answer is empty"),
        ({"answer": None}, "0: the answer is NoneType, not text"),
        ({"answer": True}, "0: the answer is bool, not text"),
        ({"answer": "a|!+b"}, "0: the answer 'a|!+b' contains |!+"),
        ({"question": "\t"}, "0: the question is empty"),
        ({"phrase_type": "tset_para"}, "0: phrase_type 'tset_para', none of"),
        ({"answer_type": "CLOSE"}, "0: answer_type 'CLOSE', none of ('CLOSED', 'OPEN')"),
        ({"qid": "one"}, "entry 0: qid 'one' is not a number"),
        ({"qid": 8}, "8: the id occurs twice"),
    ],
)
def test_a_bad_question_is_named_and_nothing_written(root, out, capsys, fields, message):
    changed(root, 0, **fields)
    assert prepare("vqa_rad", root, out) == 2
    assert f"{SOURCE}, {message}" in capsys.readouterr().err
    assert {path.name for path in out.glob("*")} == {"train.tsv.problems.txt"}


def test_a_missing_image_is_named(root, out, capsys):
    (root / "VQA_RAD Image Folder" / "synpic2.jpg").unlink()
    assert prepare("vqa_rad", root, out) == 2
    assert "synpic2.jpg, 4: image not found" in capsys.readouterr().err
    assert not list(out.glob("*.tsv"))


def test_an_answer_that_is_a_decimal_number(root, out):
    changed(root, 0, answer=2.5)
    assert prepare("vqa_rad", root, out, "--splits", "train") == 0
    assert texts(out / "train.tsv")[0][3] == "1.0|!+2.5"


@pytest.mark.parametrize(
    "content",
    [[{"qid": 1, "img_name": "a.jpg"}], {"questions": [1]}, [["a"]]],
)
def test_the_file_of_another_data_set_is_rejected_on_one_line(root, out, capsys, content):
    (root / SOURCE).write_text(json.dumps(content))
    assert prepare("vqa_rad", root, out) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert f"{SOURCE}: its first entry has no " in error and "another data set" in error
    assert not list(out.glob("*"))

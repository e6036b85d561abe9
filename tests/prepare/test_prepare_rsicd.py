"""RSICD: repeated captions, captions without words, its dictionary, and what is rejected."""

from __future__ import annotations

import json

import pytest
from helpers import prepare_samples as samples
from helpers.prepare_samples import manifest, prepare, rows
from helpers.task_files import setup

from ofa_exit.prepare import karpathy


@pytest.fixture
def root(tmp_path):
    samples.rsicd(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def changed(root, change) -> None:
    source = root / "dataset_rsicd.json"
    content = json.loads(source.read_text())
    change(content)
    source.write_text(json.dumps(content))


def words(out) -> list[str]:
    return [line.split()[0] for line in (out / "dict.txt").read_text().splitlines()]


def test_distinct_captions_train_and_all_five_are_references(root, out, capsys):
    assert prepare("rsicd", root, out) == 0
    assert [row[:4] for row in rows(out / "train.tsv")] == [
        ["0", "0", "many planes .", ""],
        ["2", "0", "a runway .", ""],
        ["5", "1", "a lake .", ""],
        ["7", "1", "two lakes .", ""],
    ]
    (valid,) = rows(out / "valid.tsv")
    assert valid[:3] == ["2", "2", "a green park .&&trees .&&a green park .&&trees .&&a park ."]
    stage2 = [row[2].split("&&") for row in rows(out / "train_stage2.tsv")]
    assert stage2[0] == ["many planes .", "many planes .", "a runway ."] and len(stage2[1]) == 5
    printed = capsys.readouterr().err
    assert "train.tsv is not the published split: 2 images, published 8,734" in printed
    assert "4 rows; left out: 2 captions without words, 4 repeated captions of an image" in printed


def test_a_caption_without_words_is_no_reference(root, out, capsys):
    assert prepare("rsicd", root, out, "--splits", "test") == 0
    (row,) = rows(out / "test.tsv")
    assert row[2].split("&&") == ["a bridge .", "a bridge .", "a road .", "a river ."]
    assert manifest(out / "test.tsv")["left_out"] == {karpathy.NO_WORDS: 1}
    assert "1 rows; left out: 1 captions without words" in capsys.readouterr().err


def test_the_dictionary_has_the_words_that_training_reads(root, out):
    assert prepare("rsicd", root, out) == 0
    # Twice in the captions: a, lake. Once: the others, by name. The prompt is read with each row.
    assert words(out)[:1] == ["a"] and "bridge" not in words(out)
    assert {"many", "planes", "runway", "two", "lakes", "what", "does", "image"} < {*words(out)}
    task = setup("mue_caption", out)
    task.load_dataset("train")
    dataset = task.dataset("train")
    assert [dataset[row].unknown for row in range(len(dataset))] == [[]] * 4
    assert manifest(out / "dict.txt")["output"]["rows"] == len(words(out))


def test_words_of_a_checkpoint_come_first(root, out, tmp_path):
    first = tmp_path / "dict.txt"
    first.write_text("zebra 3\nlake 2\n? 9\n")
    assert prepare("rsicd", root, out, "--dictionary", first) == 0
    assert words(out)[:3] == ["zebra", "lake", "?"] and words(out).count("lake") == 1
    assert "runway" in words(out)


def test_no_dictionary_beside_a_bpe(root, out, capsys):
    assert prepare("rsicd", root, out, "--dictionary", "none") == 0
    assert not (out / "dict.txt").exists()
    (out / "dict.txt").write_text("262 1\n")
    (out / "encoder.json").write_text("{}")
    assert prepare("rsicd", root, out) == 0
    assert (out / "dict.txt").read_text() == "262 1\n"
    assert "dict.txt: kept; encoder.json is not made by this command" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [("zebra", ":1: 'zebra'"), (None, "none.txt")])
def test_a_bad_dictionary_is_rejected_first(root, out, tmp_path, capsys, text, message):
    path = tmp_path / "none.txt"
    if text:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        prepare("rsicd", root, out, "--dictionary", path)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["images"][1].update(split="trian"),
            "dataset_rsicd.json, 1: split 'trian', none of ('train', 'restval', 'val', 'test')",
        ),
        (
            lambda c: c["images"][1].update(sentences=[]),
            "dataset_rsicd.json, 1: the image has no captions",
        ),
        (
            lambda c: [one.update(raw=".") for one in c["images"][1]["sentences"]],
            "dataset_rsicd.json, 1: the image has no captions",
        ),
        (
            lambda c: c["images"][1].update(filename="none.jpg"),
            "none.jpg, 5: image not found",
        ),
        (
            lambda c: c["images"][1].update(imgid=0),
            "dataset_rsicd.json, 0: the id occurs twice",
        ),
        (
            lambda c: c["images"][1]["sentences"][0].update(raw=7),
            "dataset_rsicd.json, 1: a caption is int, not text",
        ),
    ],
)
def test_a_bad_image_is_named_and_nothing_written(root, out, capsys, change, message):
    changed(root, change)
    assert prepare("rsicd", root, out) == 2
    assert message in capsys.readouterr().err
    assert not list(out.glob("*.tsv")) and not (out / "dict.txt").exists()
    assert prepare("rsicd", root, out, "--skip-missing") == 0
    assert {row[1] for row in rows(out / "train.tsv")} == {"0"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(dataset="coco"), "its data set is 'coco', not 'RSICD'"),
        (lambda c: c.update(dataset=None), "its data set is 'None', not 'RSICD'"),
        (
            lambda c: c.update(images=[{"id": 1, "file_name": "a.jpg"}]),
            "its first entry has no imgid, filename, split, sentences, so the file belongs to "
            "another data set",
        ),
        (lambda c: c.pop("images"), "'images' is missing"),
    ],
)
def test_the_file_of_another_data_set_is_rejected_on_one_line(root, out, capsys, change, message):
    changed(root, change)
    assert prepare("rsicd", root, out) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1 and "dataset_rsicd.json: " in error[0] and message in error[0]
    assert not list(out.glob("*.tsv"))


def test_images_of_another_size_are_not_mixed(root, out, tmp_path, capsys):
    assert prepare("rsicd", root, out) == 0
    before = (out / "train.tsv").read_bytes()
    samples.rsicd(tmp_path / "large", side=90)
    assert prepare("rsicd", tmp_path / "large", out) == 2
    error = capsys.readouterr().err
    assert "train.tsv, line 1: it does not hold" in error and "airport_1.jpg" in error
    assert (out / "train.tsv").read_bytes() == before
    assert prepare("rsicd", root, out) == 0  # nothing is made again
    assert "exists already" in capsys.readouterr().err
    assert prepare("rsicd", tmp_path / "large", tmp_path / "out_large") == 0

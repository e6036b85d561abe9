"""Preparation keeps other data sets' files and reports missing images at once."""

from __future__ import annotations

import json

import pytest
from helpers import prepare_samples as samples
from helpers.prepare_samples import manifest, prepare, problems


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_a_data_set_does_not_replace_another(root, out, capsys):
    samples.snli_ve(root / "snli")
    samples.coco(root / "coco")
    assert prepare("snli_ve", root / "snli", out) == 0
    before = (out / "train.tsv").read_bytes()
    assert prepare("coco", root / "coco", out) == 2
    message = capsys.readouterr().err
    assert "train.tsv was made from snli_ve_train.jsonl" in message
    assert (out / "train.tsv").read_bytes() == before


def test_shared_candidates_do_not_merge_data_sets(root, out, capsys):
    """answers.txt is a source of VQA's rows and of VizWiz's."""
    samples.vqa(root / "vqa")
    samples.vizwiz(root / "vizwiz")
    few = ("--min-occurrences", 1)
    assert prepare("vqa", root / "vqa", out, *few) == 0
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert prepare("vizwiz", root / "vizwiz", out, *few) == 2
    assert "hoose another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_partial_file_of_another_data_set_is_kept(root, out, capsys):
    samples.snli_ve(root / "snli")
    samples.coco(root / "coco")
    assert prepare("snli_ve", root / "snli", out) == 0
    partial, inputs = out / "train.tsv.partial", out / "train.tsv.partial.json"
    partial.write_bytes(b"begun")
    inputs.write_text(json.dumps(manifest(out / "train.tsv")["inputs"]))
    for path in (out / "train.tsv", None):
        assert prepare("coco", root / "coco", out) == 2
        assert "was made from snli_ve_train.jsonl" in capsys.readouterr().err
        assert partial.read_bytes() == b"begun"
        if path:  # and where the partial file is all there is
            path.unlink()


def test_images_all_missing_are_reported_at_once(root, out, capsys):
    samples.vqa(root)
    for folder in root.glob("*20*"):
        if folder.is_dir():
            folder.rename(root.parent / folder.name)
    assert prepare("vqa", root, out, "--answers", 0) == 2
    message = capsys.readouterr().err
    assert (
        f"none of its images is below {root.resolve()}; one of them is COCO_train2014_0" in message
    )
    assert "image not found" not in message


def test_a_missing_image_is_reported_once_per_question(root, out, capsys):
    samples.vqa(root)
    (root / "train2014" / "COCO_train2014_000000458752.jpg").unlink()
    assert prepare("vqa", root, out, "--answers", 0, "--splits", "train") == 2
    listed = problems(out / "train.tsv")
    assert len(listed) == len(set(listed)) > 1  # two answers or more to a question

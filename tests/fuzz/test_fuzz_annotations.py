"""Annotation files of releases with changed values and bytes, prepared by ``ofa-exit prepare``."""

from __future__ import annotations

import base64
import functools
import json
import shutil
from pathlib import Path

import pytest
from helpers import fuzzing
from helpers import prepare_samples as samples
from helpers.fuzzing import BYTE_EDITS, DEEP, JSON_EDITS, folder_for_one, fuzz, run_verb
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.slow
# The release's function, the annotation files that are damaged, the rows' columns.
RELEASES = {
    "coco": (samples.coco, "dataset_coco.json", 5),
    "rsicd": (samples.rsicd, "dataset_rsicd.json", 5),
    "vqa_rad": (samples.vqa_rad, "VQA_RAD Dataset Public.json", 6),
    "vqa": (samples.vqa, "v2_mscoco_train2014_annotations.json", 6),
    "gqa": (samples.gqa, "train_balanced_questions.json", 6),
    "nocaps": (samples.nocaps, "nocaps_val_4500_captions.json", 5),
}
TEXTS = (DEEP, f'{{"images": {DEEP}', "[]", "{}", "null", "1e999", '"' * 99, "\ufeff[]", "{" * 9)


@functools.cache
def release(parent: Path, name: str) -> Path:
    root = parent / name / "root"
    RELEASES[name][0](root)
    return root


def check_rows(path: Path, columns: int, images: set[str]) -> None:
    """Every row is whole, and its image is a file of the release."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        fields = line.decode().split("\t")
        assert len(fields) == columns and fields[0].strip()
        assert len(images.intersection(fields)) == 1


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("releases")


def check_release(tmp_path: Path, parent: Path, name: str, content: bytes, *more: str) -> None:
    root, (_, file, columns) = release(parent, name), RELEASES[name]
    with folder_for_one(tmp_path) as folder:
        (folder / "root").mkdir()
        for path in root.rglob("*"):
            if path.is_file():
                copy = folder / "root" / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        (folder / "root" / file).write_bytes(content)
        given = [name, str(folder / "root"), str(folder / "out"), *more]
        status, _ = run_verb(folder, "", "prepare", *given)
        written = sorted((folder / "out").glob("*.tsv")) if (folder / "out").exists() else []
        assert written or status == 2
        photos = (folder / "root").rglob("*.jpg")
        images = {base64.urlsafe_b64encode(path.read_bytes()).decode() for path in photos}
        for path in written:
            check_rows(path, columns, images)


@pytest.mark.parametrize("name", RELEASES)
@fuzz(40)
@given(edits=JSON_EDITS, skip=st.booleans())
def test_changed_values(tmp_path, parent, name, edits, skip):
    content = json.loads((release(parent, name) / RELEASES[name][1]).read_text())
    text = json.dumps(fuzzing.changed(content, edits))
    more = ["--skip-missing"] if skip else []
    check_release(tmp_path, parent, name, text.encode(), *more)


@pytest.mark.parametrize("name", ["coco", "rsicd", "vqa_rad"])
@fuzz(30)
@given(edits=BYTE_EDITS)
def test_damaged_bytes(tmp_path, parent, name, edits):
    content = (release(parent, name) / RELEASES[name][1]).read_bytes()
    check_release(tmp_path, parent, name, fuzzing.damaged(content, edits), "--skip-missing")


@pytest.mark.parametrize("name", ["coco", "rsicd", "vqa_rad"])
@pytest.mark.parametrize("text", TEXTS)
def test_other_json(tmp_path, parent, name, text):
    check_release(tmp_path, parent, name, text.encode())

"""Preparation: resuming, manifests, and errors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import prepare_samples as samples
from helpers.paths import ROOT
from helpers.prepare_samples import manifest, prepare, problems, rows
from helpers.small_disk import disk_of

from ofa_exit.data import row_index
from ofa_exit.prepare import writer


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


TRAIN = ("--splits", "train")

# Kills the process at the given image, as nothing can be tidied up then.
KILLED = """
import os, signal, sys
from ofa_exit.prepare import writer
from ofa_exit.cli.prepare import main
encode, left = writer.encode_image, [int(sys.argv.pop(1))]
def encode_or_die(path):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(path)
writer.encode_image = encode_or_die
main(sys.argv[1:])
"""


def test_a_killed_run_leaves_no_file_and_resumes(root, out, capsys, monkeypatch):
    samples.many_coco_images(root, 60)
    # Larger than what Python holds back before it writes.
    samples.jpeg(root / "train2014" / "COCO_train2014_000000000110.jpg", side=900)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "50", "coco", str(root), str(out), *TRAIN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name for path in out.iterdir()}
    assert left == {"train.tsv.partial", "train.tsv.partial.json", "train.tsv.partial.lock"}
    read = []
    encode = writer.encode_image
    monkeypatch.setattr(writer, "encode_image", lambda path: read.append(path) or encode(path))
    assert prepare("coco", root, out, *TRAIN) == 0
    assert len(rows(out / "train.tsv")) == 123
    assert 23 < 123 - len(read) <= 50
    assert f"{123 - len(read)} of them from an earlier run" in capsys.readouterr().err
    resumed = (out / "train.tsv").read_bytes()
    names = {"train.tsv", "train.tsv.manifest.json", ".ofa-exit"}
    assert {path.name for path in out.iterdir()} == names
    assert prepare("coco", root, out / "again", *TRAIN) == 0
    assert (out / "again" / "train.tsv").read_bytes() == resumed
    assert manifest(out / "train.tsv")["output"] == {
        "file": "train.tsv",
        "rows": 123,
        "bytes": len(resumed),
        "mtime_ns": (out / "train.tsv").stat().st_mtime_ns,
        "sha256": hashlib.sha256(resumed).hexdigest(),
    }


def interrupted(root, out, monkeypatch, after: int = 30, *options: str) -> Path:
    """Stop a run at the ``after``th image. Return its partial file."""
    encode, left = writer.encode_image, [after]

    def encode_or_stop(path):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return encode(path)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "encode_image", encode_or_stop)
        assert prepare("coco", root, out, *TRAIN, *options) == 130
    return out / "train.tsv.partial"


@pytest.mark.parametrize("damage", ["torn", "zeros", "other row", "too long", "nothing"])
def test_lost_rows_of_the_partial_file_are_written_again(root, out, monkeypatch, capsys, damage):
    samples.many_coco_images(root)
    partial = interrupted(root, out, monkeypatch)
    assert "interrupted" in capsys.readouterr().err
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 30
    if damage == "torn":
        partial.write_bytes(b"".join(lines)[:-5])
        kept = 29
    elif damage == "zeros":
        lines[20] = lines[20][:80] + bytes(20) + lines[20][100:]
        partial.write_bytes(b"".join(lines))
        kept = 20
    elif damage == "other row":
        partial.write_bytes(b"".join([*lines[:10], *lines[11:]]))
        kept = 10
    elif damage == "too long":
        partial.write_bytes(b"".join([*lines, b"x" * 1000]))
        kept = 30
    else:
        kept = 30
    assert prepare("coco", root, out, *TRAIN) == 0
    assert f"63 rows, {kept} of them from an earlier run" in capsys.readouterr().err
    assert prepare("coco", root, out / "again", *TRAIN) == 0
    assert (out / "train.tsv").read_bytes() == (out / "again" / "train.tsv").read_bytes()


def test_other_inputs_start_over(root, out, monkeypatch, capsys):
    source = samples.many_coco_images(root)
    interrupted(root, out, monkeypatch)
    source.write_text(source.read_text().replace("picture 0 0", "portrait 0 0"))
    assert prepare("coco", root, out, *TRAIN) == 0
    message = capsys.readouterr().err
    assert "not from these inputs and options; starting over" in message
    assert "earlier run" not in message
    assert rows(out / "train.tsv")[3][2] == "portrait 0 0"


def test_a_finished_file_is_kept_while_its_inputs_are_the_same(root, out, capsys):
    source = samples.many_coco_images(root)
    assert prepare("coco", root, out, *TRAIN) == 0
    stamp = (out / "train.tsv").stat().st_mtime_ns
    assert prepare("coco", root, out, *TRAIN) == 0
    assert "exists already, 63 rows" in capsys.readouterr().err
    assert (out / "train.tsv").stat().st_mtime_ns == stamp
    # A file that was cut is not whole, though its manifest is there.
    content = (out / "train.tsv").read_bytes()
    (out / "train.tsv").write_bytes(content[:-100])
    assert prepare("coco", root, out, *TRAIN) == 0
    assert (out / "train.tsv").read_bytes() == content
    source.write_text(source.read_text().replace("picture 0 0", "portrait 0 0"))
    assert prepare("coco", root, out, *TRAIN) == 0
    assert rows(out / "train.tsv")[3][2] == "portrait 0 0"


def test_killed_between_manifest_and_rename(root, out, monkeypatch, capsys):
    samples.many_coco_images(root)

    def killed(path, written):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "publish", killed)
        assert prepare("coco", root, out, *TRAIN) == 130
    assert not (out / "train.tsv").exists()
    assert prepare("coco", root, out, *TRAIN) == 0
    assert "63 rows, 63 of them from an earlier run" in capsys.readouterr().err


def test_concurrent_runs_raise(root, out, capsys):
    samples.many_coco_images(root)
    out.mkdir()
    with FileLock(out / "train.tsv.partial.lock"):
        assert prepare("coco", root, out, *TRAIN) == 2
    assert "being written by another run" in capsys.readouterr().err


def test_missing_and_broken_images(root, out, capsys):
    samples.many_coco_images(root)
    folder = root / "train2014"
    (folder / "COCO_train2014_000000000103.jpg").unlink()
    assert prepare("coco", root, out, *TRAIN) == 2
    message = capsys.readouterr().err
    assert "2 records cannot become rows" in message
    assert "COCO_train2014_000000000103.jpg, 1030: image not found" in message
    assert [path.name for path in out.iterdir()] == ["train.tsv.problems.txt"]
    # One that is there and no image is found when it is read.
    (folder / "COCO_train2014_000000000105.jpg").write_bytes(b"<html>not found</html>")
    assert prepare("coco", root, out, *TRAIN, "--skip-missing") == 0
    assert "59 rows; 4 skipped, see train.tsv.problems.txt" in capsys.readouterr().err
    assert manifest(out / "train.tsv")["skipped"] == 4
    assert manifest(out / "train.tsv")["problems"] == "train.tsv.problems.txt"
    of = [line.partition(":")[0][-13:] for line in problems(out / "train.tsv")]
    assert of == ["103.jpg, 1030", "103.jpg, 1031", "105.jpg, 1050", "105.jpg, 1051"]
    assert not {"1030", "1031", "1050", "1051"} & {row[0] for row in rows(out / "train.tsv")}
    assert prepare("coco", root, out, *TRAIN, "--skip-missing") == 0
    assert "59 rows; 4 were skipped: remove it to try them again" in capsys.readouterr().err
    (more := root / "more").mkdir()  # where they may be
    assert prepare("coco", root, out, *TRAIN, "--skip-missing", "--images", more) == 0
    assert "starting over" in capsys.readouterr().err
    samples.coco_image(root, "train2014", 103)
    assert prepare("coco", root, out / "strict", *TRAIN) == 2
    assert "1050" in (message := capsys.readouterr().err) and "is not a readable image" in message
    assert len(problems(out / "strict" / "train.tsv")) == 2
    # Mended, the run goes on.
    samples.coco_image(root, "train2014", 105)
    assert prepare("coco", root, out / "strict", *TRAIN) == 0
    assert "of them from an earlier run" in capsys.readouterr().err
    assert len(rows(out / "strict" / "train.tsv")) == 63
    assert not (out / "strict" / "train.tsv.problems.txt").exists()
    assert manifest(out / "strict" / "train.tsv")["problems"] is None


def test_resuming_past_a_broken_image(root, out, monkeypatch, capsys):
    samples.many_coco_images(root)
    (root / "train2014" / "COCO_train2014_000000000105.jpg").write_bytes(b"")
    interrupted(root, out, monkeypatch, 40, "--skip-missing")
    assert prepare("coco", root, out, *TRAIN, "--skip-missing") == 0
    assert "61 rows, 38 of them from an earlier run; 2 skipped" in capsys.readouterr().err
    assert [line.split(":")[0][-4:] for line in problems(out / "train.tsv")] == ["1050", "1051"]
    assert len(rows(out / "train.tsv")) == 61


def test_one_run_reports_all_broken_images(root, out, capsys):
    """Also those after the first one, although no row is written after it."""
    samples.many_coco_images(root)
    for image in (105, 120):
        path = root / "train2014" / f"COCO_train2014_000000000{image}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    assert prepare("coco", root, out, *TRAIN) == 2
    message = capsys.readouterr().err
    assert "Reading the other images" in message
    assert "4 records cannot become rows" in message
    assert f"All are listed in {out / 'train.tsv.problems.txt'}" in message
    of = [line.partition(":")[0][-13:] for line in problems(out / "train.tsv")]
    assert of == ["105.jpg, 1050", "105.jpg, 1051", "120.jpg, 1200", "120.jpg, 1201"]
    assert len(rows(out / "train.tsv.partial")) == 13
    for image in (105, 120):
        samples.coco_image(root, "train2014", image)
    assert prepare("coco", root, out, *TRAIN) == 0
    assert "63 rows, 13 of them from an earlier run" in capsys.readouterr().err


def test_all_problems_are_listed_and_ten_shown(root, out, capsys, monkeypatch):
    samples.many_coco_images(root, 8)
    for path in (root / "train2014").glob("*0001*.jpg"):
        path.unlink()
    assert prepare("coco", root, out, *TRAIN) == 2
    message = capsys.readouterr().err
    shown = [line.strip() for line in message.splitlines() if "image not found" in line]
    assert len(shown) == 10 and "and 6 more" in message
    listed = problems(out / "train.tsv")
    assert len(set(listed)) == 16 and listed[:10] == shown


def test_an_interrupted_run_keeps_the_list_of_the_last_complete_one(root, out, monkeypatch):
    samples.many_coco_images(root)
    image = root / "train2014" / "COCO_train2014_000000000103.jpg"
    image.unlink()
    assert prepare("coco", root, out, *TRAIN) == 2
    listed = problems(out / "train.tsv")
    (root / "train2014" / "COCO_train2014_000000000104.jpg").unlink()
    interrupted(root, out, monkeypatch, 5, "--skip-missing")
    assert problems(out / "train.tsv") == listed
    names = {"train.tsv.partial", "train.tsv.partial.json", "train.tsv.problems.txt"}
    assert {path.name for path in out.iterdir()} == names


def test_the_index_is_written_with_the_file(root, out, monkeypatch):
    samples.many_coco_images(root)
    interrupted(root, out, monkeypatch)
    assert prepare("coco", root, out, *TRAIN) == 0
    path = out / "train.tsv"
    counted = row_index._scan(path.open("rb")).tolist()
    monkeypatch.setattr(row_index, "_scan", None)
    assert row_index.row_offsets(path)[1].tolist() == counted
    assert len(counted) == 64


def test_images_in_further_folders(root, out, tmp_path):
    samples.coco(root)
    (root / "train2014").rename(tmp_path / "elsewhere")
    assert prepare("coco", root, out, *TRAIN) == 2
    assert prepare("coco", root, out, *TRAIN, "--images", tmp_path / "elsewhere") == 0


def test_duplicate_id(root, out, capsys):
    source = samples.coco(root)
    content = json.loads(source.read_text())
    content["images"].append(content["images"][0])
    source.write_text(json.dumps(content))
    assert prepare("coco", root, out, *TRAIN) == 2
    assert "dataset_coco.json, 9: the id occurs twice" in capsys.readouterr().err


def test_strict_counts_stop_before_anything_is_written(root, out, capsys):
    samples.coco(root)
    assert prepare("coco", root, out, "--strict-counts") == 2
    assert "3 rows, published 566,747; 2 images, published 113,287" in capsys.readouterr().err
    assert not out.exists()


def test_published_counts_pass(root, out, monkeypatch, capsys):
    from ofa_exit.prepare import coco

    samples.coco(root)
    monkeypatch.setitem(coco.PUBLISHED, "train", {"rows": 3, "images": 2})
    assert prepare("coco", root, out, *TRAIN, "--strict-counts") == 0
    assert "warning" not in capsys.readouterr().err
    assert manifest(out / "train.tsv")["counts"]["published"] == {"rows": 3, "images": 2}


def test_warning_of_a_full_disk(root, out, monkeypatch, capsys):
    samples.coco(root)
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("ofa_exit.prepare.job.shutil.disk_usage", lambda path: usage)
    assert prepare("coco", root, out, *TRAIN) == 0
    assert "GB more and the disk has 0.0 GB" in capsys.readouterr().err


def test_a_full_disk_names_the_file_and_the_run_resumes(root, out, capsys):
    samples.coco(root)
    assert prepare("coco", root, out, *TRAIN) == 0
    whole = (out / "train.tsv").read_bytes()
    shutil.rmtree(out)
    with disk_of(len(whole) - 1):
        assert prepare("coco", root, out, *TRAIN) == 2
    error = capsys.readouterr().err
    assert re.search(rf"{out}/\S*train\.tsv\S* cannot be written: File too large", error)
    assert not (out / "train.tsv").exists()
    assert prepare("coco", root, out, *TRAIN) == 0
    assert (out / "train.tsv").read_bytes() == whole


def test_a_kill_after_the_last_file_leaves_nothing(root, out):
    samples.coco(root)
    assert prepare("coco", root, out, *TRAIN) == 0
    files = sorted(out.iterdir())
    (out / "train.tsv.partial.json").write_text("{}")
    assert prepare("coco", root, out, *TRAIN) == 0
    assert sorted(out.iterdir()) == files


def test_missing_splits(root, out, capsys):
    samples.snli_ve(root)
    (root / "snli_ve_test.jsonl").unlink()
    assert prepare("snli_ve", root, out) == 0
    assert "test: left out, snli_ve_test.jsonl" in capsys.readouterr().err
    assert {path.name for path in out.glob("*.tsv")} == {"train.tsv", "valid.tsv"}
    assert prepare("snli_ve", root, out, "--splits", "test") == 2
    assert "test needs snli_ve_test.jsonl below" in capsys.readouterr().err
    assert prepare("snli_ve", out, out) == 2
    assert "nothing to prepare below" in capsys.readouterr().err
    assert prepare("snli_ve", root / "nowhere", out) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_duplicate_annotation_file(root, out, capsys):
    samples.snli_ve(root)
    (root / "copy").mkdir()
    (root / "copy" / "snli_ve_dev.jsonl").write_text("{}")
    assert prepare("snli_ve", root, out) == 2
    assert "snli_ve_dev.jsonl exists more than once" in capsys.readouterr().err


def test_invalid_json_lines(root, out, capsys):
    samples.snli_ve(root)
    with (root / "snli_ve_dev.jsonl").open("a") as file:
        file.write('{"pairID": "x", "gold_label": "-"')
    assert prepare("snli_ve", root, out, "--splits", "valid") == 2
    assert "snli_ve_dev.jsonl, line 4 is not JSON" in capsys.readouterr().err

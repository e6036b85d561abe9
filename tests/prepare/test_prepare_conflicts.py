"""Preparation beside another run, and onto pipes and devices."""

import os

import pytest
from helpers import prepare_samples as samples
from helpers.prepare_samples import manifest, prepare, rows

from ofa_exit.prepare import manifest as manifests
from ofa_exit.prepare import writer

TRAIN = ("--splits", "train")


@pytest.fixture
def root(tmp_path):
    samples.coco(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.mark.parametrize(("module", "step"), [(manifests, "write_manifest"), (writer, "publish")])
def test_a_second_run_waits_until_the_file_is_published(
    root, out, monkeypatch, capsys, module, step
):
    """With other options it would truncate the rows that the first run is about to rename."""
    original, statuses = getattr(module, step), []

    def late(*args, **kwargs):
        monkeypatch.setattr(module, step, original)
        statuses.append(prepare("coco", root, out, *TRAIN, "--skip-missing"))
        return original(*args, **kwargs)

    monkeypatch.setattr(module, step, late)
    assert prepare("coco", root, out, *TRAIN) == 0
    assert statuses == [2]
    assert "is being written by another run" in capsys.readouterr().err
    assert (out / "train.tsv").stat().st_size == manifest(out / "train.tsv")["output"]["bytes"]
    assert len(rows(out / "train.tsv")) == 3
    # The lock has ended with its run.
    assert prepare("coco", root, out, *TRAIN, "--skip-missing") == 0


def test_a_run_that_waited_for_the_lock_finds_the_file_finished(root, out, monkeypatch, capsys):
    locked = writer.locked

    def lock_late(path):
        monkeypatch.setattr(writer, "locked", locked)
        assert prepare("coco", root, out, *TRAIN) == 0
        return locked(path)

    monkeypatch.setattr(writer, "locked", lock_late)
    assert prepare("coco", root, out, *TRAIN) == 0
    assert "exists already, 3 rows" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
@pytest.mark.parametrize("name", ["train.tsv", "train.tsv.partial", "train.tsv.partial.lock"])
def test_only_regular_files_are_written(root, out, capsys, name, kind):
    out.mkdir()
    if kind == "pipe":
        os.mkfifo(out / name)
    elif kind == "folder":
        (out / name).mkdir()
    else:
        (out / name).symlink_to("/dev/zero" if kind == "device" else name)
    before = (out / name).lstat()
    assert prepare("coco", root, out, *TRAIN) == 2
    message = capsys.readouterr().err
    assert str(out / name) in message and "[Errno" not in message
    assert "Remove it" in message
    assert os.path.samestat((out / name).lstat(), before)
    assert [path.name for path in out.iterdir()] == [name]

"""Preparation beside another run, onto pipes and devices, and of images that have changed."""

import io
import os

import pytest
from helpers import prepare_samples as samples
from helpers.prepare_samples import manifest, prepare, rows
from PIL import Image

from ofa_exit.prepare import images, writer
from ofa_exit.prepare import manifest as manifests

TRAIN = ("--splits", "train")
ENDINGS = ("", ".partial", ".partial.lock", ".problems.txt")


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
@pytest.mark.parametrize("name", [f"train.tsv{ending}" for ending in ENDINGS])
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


def change_image(root) -> None:
    """Replace the first training image by a readable one of as many bytes."""
    path = sorted((root / "train2014").iterdir())[0]
    before = path.read_bytes()
    for place in range(len(before) - 3, 2, -1):
        changed = before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :]
        try:
            Image.open(io.BytesIO(changed)).load()
        except Exception:  # whatever the decoder meets
            continue
        path.write_bytes(changed)
        images.encode_image.cache_clear()
        return


def test_resuming_writes_a_changed_image_of_equal_length_again(root, out, monkeypatch, capsys):
    def killed(path, written):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "publish", killed)
        assert prepare("coco", root, out, *TRAIN) == 130
    partial = (out / "train.tsv.partial").read_bytes()
    change_image(root)
    assert prepare("coco", root, out, *TRAIN) == 0
    assert "earlier run" not in capsys.readouterr().err
    content = (out / "train.tsv").read_bytes()
    assert len(content) == len(partial) and content != partial
    assert prepare("coco", root, out / "again", *TRAIN) == 0
    assert (out / "again" / "train.tsv").read_bytes() == content


def test_a_finished_file_with_a_changed_image_of_equal_length(root, out, capsys):
    assert prepare("coco", root, out, *TRAIN) == 0
    change_image(root)
    assert prepare("coco", root, out, *TRAIN) == 2
    assert "train.tsv, line 1: it does not hold" in capsys.readouterr().err


def test_a_folder_whose_name_is_not_utf8(root, out, capsys):
    other = os.fsencode(root) + b"\xff"
    os.rename(root, other)
    assert prepare("coco", os.fsdecode(other), out, *TRAIN) == 0
    assert manifest(out / "train.tsv")["folders"] == [os.fsdecode(os.path.realpath(other))]
    assert prepare("coco", os.fsdecode(other), out, *TRAIN) == 0
    assert "exists already, 3 rows" in capsys.readouterr().err

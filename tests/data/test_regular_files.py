"""Pipes, devices and loops of links in place of files: rejected, not waited for."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import prepare_samples as samples
from helpers import task_files as files

from ofa_exit.cli.main import main
from ofa_exit.data.images import ImageError, read_file
from ofa_exit.data.own_images import read_image
from ofa_exit.data.row_index import index_path
from ofa_exit.data.tsv import TsvError, TsvFile
from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.prepare.images import Files
from ofa_exit.regular_files import check_output, regular_file

KINDS = ("pipe", "/dev/zero", "loop")
REASON = r"not a regular file|symbolic links"


@contextmanager
def seconds(limit=20):
    """Raise TimeoutError where the block waits."""

    def stop(*_):
        raise TimeoutError(f"waited for {limit} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make(path: Path, kind: str) -> Path:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else kind)
    return path


@pytest.fixture(params=KINDS)
def endless(request, tmp_path):
    """Makes a path that is no file."""
    with seconds():
        yield lambda name: make(tmp_path / name, request.param)


def test_regular_files_pass(tmp_path):
    path = tmp_path / "a"
    path.write_text("x")
    (tmp_path / "link").symlink_to(path)
    assert regular_file(path) == path and regular_file(tmp_path / "link").read_text() == "x"
    with pytest.raises(IsADirectoryError):
        regular_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "gone")


def test_a_data_file(endless):
    with pytest.raises(TsvError, match=REASON):
        TsvFile(endless("a.tsv"), None, ("id",))


def test_the_image_of_a_row(endless):
    path = endless("a.png")
    with pytest.raises(ImageError, match=REASON):
        read_file(path.name, path.parent)
    with pytest.raises(ImageError, match=REASON):
        read_image(path)


def test_a_checkpoint(endless):
    with pytest.raises((ValueError, OSError), match=REASON):
        read_checkpoint(endless("m.pt"))


def test_the_index_and_its_lock(endless, tmp_path):
    path = files.write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    index_path(path).parent.mkdir()
    endless(f".ofa-exit/{index_path(path).name}")
    endless(f".ofa-exit/{index_path(path).name}.lock")
    assert len(TsvFile(path, None, ("id",))) == 2


def test_a_folder_of_official_files(endless, tmp_path, capsys):
    root = tmp_path / "root"
    samples.coco(root)
    endless("root/val2014/COCO_val2014_000000000073.jpg")
    assert main(["prepare", "coco", str(root), str(tmp_path / "out"), "--splits", "valid"]) == 2
    assert "COCO_val2014_000000000073.jpg" in capsys.readouterr().err
    endless("root/dataset_coco.json")
    assert main(["prepare", "coco", str(root), str(tmp_path / "out")]) == 2
    assert "dataset_coco.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.tsv.partial", "train.tsv.partial.json"])
def test_partial_files_of_a_preparation(endless, tmp_path, name, capsys):
    root = tmp_path / "root"
    samples.coco(root)
    (tmp_path / "out").mkdir()
    endless(f"out/{name}")
    status = main(["prepare", "coco", str(root), str(tmp_path / "out"), "--splits", "train"])
    assert status in (0, 2)
    if status:
        assert name in capsys.readouterr().err
    else:
        assert len((tmp_path / "out" / "train.tsv").read_text().splitlines()) == 3


def test_links_to_folders_above_are_not_followed(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "one.jpg").touch()
    for number in range(4):
        (inside / f"up{number}").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(inside)  # a folder of two names is read twice
    with seconds():
        found = Files([tmp_path])
    assert found.image(["one.jpg"]) == inside / "one.jpg"
    assert found.annotation("a/b/one.jpg") == inside / "one.jpg"


def test_csv_dictionary_and_answers(endless, tmp_path, capsys):
    assert main(["tsv", str(endless("rows.csv")), str(tmp_path / "o.tsv")]) == 2
    assert "rows.csv" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "/dev/null", "loop"])
def test_outputs_are_regular_files(tmp_path, kind):
    with seconds(), pytest.raises(ValueError, match=r"--out .*(regular file|written)"):
        check_output("--out", make(tmp_path / "out", kind))


def test_outputs_are_no_inputs(tmp_path):
    data = tmp_path / "data.tsv"
    data.touch()
    os.link(data, tmp_path / "second name")
    check_output("--out", tmp_path / "new", [data, tmp_path / "gone"])
    for name in ("data.tsv", "second name"):
        with pytest.raises(ValueError, match=r"--out .* is also an input"):
            check_output("--out", tmp_path / name, [data])

"""Outputs that are an input of the same command, or no regular file, are rejected."""

import os

import pytest
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.paths import ROOT

from ofa_exit.cli.main import main
from ofa_exit.data.files import write_bytes
from ofa_exit.plugin.errors import UsageError

SHIPPED = ROOT / "examples" / "checkpoints" / "ofa_nano_caption.pt"


@pytest.fixture
def data(tmp_path):
    return files.caption_folder(tmp_path / "data")


@pytest.mark.parametrize("name", ["test.tsv", "dict.txt", "model.pt"])
def test_the_trace_is_no_input(data, name, capsys):
    (data / "model.pt").write_bytes(SHIPPED.read_bytes())
    before = (data / name).read_bytes()
    with pytest.raises(UsageError, match=rf"--exit-trace .*{name} is also an input"):
        files.generate(TASK, data, data / "model.pt", "--exit-trace", str(data / name))
    assert (data / name).read_bytes() == before


def test_an_empty_input_is_no_trace(data):
    (data / "empty.tsv").touch()
    with pytest.raises(UsageError, match=r"--exit-trace .* is also an input"):
        files.generate(TASK, data / "empty.tsv", SHIPPED, "--exit-trace", str(data / "empty.tsv"))


def test_the_trace_is_a_regular_file(data):
    with pytest.raises(UsageError, match=r"--exit-trace /dev/full is a device, not a regular"):
        files.generate(TASK, data, SHIPPED, "--exit-trace", "/dev/full")


def test_the_results_are_no_input_and_no_device(data):
    for name in ("generate-test.txt", "generate-valid.txt"):
        (data / "test.tsv").rename(data / name)
        subset = ["--gen-subset", "valid"] if "valid" in name else []
        with pytest.raises(UsageError, match=rf"--results-path: .*{name} is also an input"):
            files.generate(TASK, data / name, SHIPPED, "--results-path", str(data), *subset)
        (data / name).rename(data / "test.tsv")
    os.mkfifo(data / "generate-test.txt")
    with pytest.raises(UsageError, match=r"--results-path: .* is a pipe, not a regular file"):
        files.generate(TASK, data, SHIPPED, "--results-path", str(data))


def test_the_trace_is_not_the_results(data):
    written = data / "generate-test.txt"
    given = ["--exit-trace", str(data / "." / written.name), "--results-path", str(data)]
    for _ in range(2):  # the file is not there, and it is
        with pytest.raises(UsageError, match=r"^--exit-trace and --results-path both write .*test"):
            files.generate(TASK, data, SHIPPED, *given)
        written.touch()


@pytest.mark.parametrize("name", ["train.tsv", "dict.txt", "model.pt", "out/checkpoint_last.pt"])
def test_the_log_is_no_input(data, name):
    """fairseq would append to it."""
    (data / "out").mkdir()
    for model in (data / "model.pt", data / "out" / "checkpoint_last.pt"):
        model.write_bytes(SHIPPED.read_bytes())
    before = (data / name).read_bytes()
    given = ["--finetune-from-model", str(data / "model.pt"), "--log-file", str(data / name)]
    with pytest.raises(UsageError, match=rf"--log-file .*{name} is also an input"):
        files.train(TASK, data, data / "out", *given, updates=1)
    assert (data / name).read_bytes() == before


def test_the_log_is_a_regular_file_in_a_folder(data):
    os.mkfifo(data / "pipe")
    for name, message in (
        ("pipe", "is a pipe, not a regular file"),
        ("none/log.txt", "cannot be written: name a file in a folder that exists"),
        (".", "cannot be written: name a file"),
    ):
        with pytest.raises(UsageError, match=rf"--log-file .*{message}"):
            files.train(TASK, data, data / "out", "--log-file", str(data / name), updates=1)


def test_a_log_is_continued(data, tmp_path):
    (tmp_path / "log.txt").write_text("before\n")
    given = ["--log-file", str(tmp_path / "log.txt"), "--disable-validation"]
    files.train(TASK, data, data / "out", *given, updates=1)
    assert (tmp_path / "log.txt").read_text().startswith("before\n")


def test_verbs_do_not_overwrite_what_they_read(data, tmp_path, capsys):
    train, page = str(data / "train.tsv"), tmp_path / "page.html"
    page.symlink_to(ROOT / "examples" / "emoji" / "dict.txt")
    shipped = ["--checkpoint", str(SHIPPED), "--bpe-dir", str(ROOT / "examples" / "emoji")]
    photo = tmp_path / "a.png"
    photo.write_bytes(b"")
    (tmp_path / "rows.csv").write_text("image\na.png\n")
    for command in (
        ["dict", train, train, "--task", "caption"],
        ["references", train, train],
        ["document-frequencies", train, train],
        ["export", train, train],
        ["holdout", "caption", str(data / "valid.tsv"), str(data)],
        ["tsv", str(tmp_path / "rows.csv"), str(tmp_path / "rows.csv")],
        ["submit", "nocaps", train, str(data / "valid.tsv"), str(data / "valid.tsv")],
        ["table", f"a={data}", "--csv", "/dev/null"],
        ["capfilt", "images", train, train],
        ["predict", "caption", str(photo), *shipped, "--html", str(page)],
    ):
        before = {path: path.read_bytes() for path in data.glob("*.*")}
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert "is also an input" in error or "is a device" in error, (command, error)
        assert {path: path.read_bytes() for path in data.glob("*.*")} == before


def test_a_dictionary_may_continue_itself(data):
    words = (data / "dict.txt").read_text()
    out = str(data / "dict.txt")
    rows = [str(data / "train.tsv"), "--task", "caption"]
    assert main(["dict", out, *rows, "--start-from", out]) == 0
    assert (data / "dict.txt").read_text().startswith(words)


def test_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_bytes(tmp_path / "pipe", b"x")

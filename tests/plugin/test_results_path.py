"""Results, traces and standard output of fairseq-generate are written to their end, or it fails."""

import subprocess
import sys

import pytest
from helpers import task_files as files
from helpers.paths import ROOT
from helpers.small_disk import disk_of, held_elsewhere

from ofa_exit.plugin.errors import UsageError

GENERATE = "from fairseq_cli.generate import cli_main; cli_main()"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    data = files.caption_folder(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return data, files.train("mue_caption", data, folder / "run", updates=1)


def generate(trained, *more):
    return files.generate("mue_caption", *trained, *map(str, more))


def test_a_full_disk_names_the_results(trained, tmp_path):
    generate(trained, "--results-path", tmp_path)
    path = tmp_path / "generate-test.txt"
    whole = path.read_bytes()
    for size in (100, len(whole) - 1):
        with (
            disk_of(size),
            pytest.raises(UsageError, match=r"generate-test\.txt cannot be written"),
        ):
            generate(trained, "--results-path", tmp_path)
        assert path.read_bytes() == whole[:size]
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_names_the_trace_and_leaves_whole_lines(trained, tmp_path):
    path = tmp_path / "trace.jsonl"
    generate(trained, "--exit-trace", path)
    whole = path.read_bytes()
    for size in (100, len(whole) - 1):
        with (
            disk_of(size),
            pytest.raises(UsageError, match=r"trace\.jsonl cannot be written: File"),
        ):
            generate(trained, "--exit-trace", path)
        left = path.read_bytes()
        assert whole.startswith(left) and len(left) <= size
        assert not left or left.endswith(b"\n")


def test_a_full_disk_of_trace_and_results_names_one_of_them(trained, tmp_path):
    given = ["--exit-trace", tmp_path / "trace.jsonl", "--results-path", tmp_path]
    with disk_of(50), pytest.raises(UsageError, match=r"trace\.jsonl cannot be written"):
        generate(trained, *given)


def test_a_second_generation_into_the_same_file_is_rejected(trained, tmp_path):
    path = tmp_path / "generate-test.txt"
    path.write_text("of the first\n")
    with held_elsewhere(tmp_path / ".generate-test.lock"):
        with pytest.raises(UsageError, match=r"another generation writes generate-test\.txt"):
            generate(trained, "--results-path", tmp_path)
        assert path.read_text() == "of the first\n"
    generate(trained, "--results-path", tmp_path)
    assert "D-0\t" in path.read_text()


def test_a_folder_that_cannot_be_made_is_one_line(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/generate-test\.txt: cannot be written \(Not"):
        generate(trained, "--results-path", tmp_path / "file")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_fails_the_command(trained, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    arguments = files.generate_arguments("mue_caption", *trained)
    command = [sys.executable, "-W", "ignore", "-c", GENERATE, *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "--user-dir", str(ROOT / "user_dir")], stdout=full, stderr=-1, text=True
        )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "standard output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr

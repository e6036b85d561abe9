"""Files are written to their end, or one error names the file and the reason."""

import subprocess
import sys

import pytest
from helpers.small_disk import disk_of, held_elsewhere

from ofa_exit.data.files import atomic_write, locked, write_bytes
from ofa_exit.writing import WriteError, append, open_alone, write_all

OPEN = """
import sys
from ofa_exit.writing import open_alone
try:
    open_alone(sys.argv[1])
except BlockingIOError as error:
    print(error.strerror)
"""


class Short:
    """An unbuffered file that takes three bytes a call, and 7 in all."""

    def __init__(self):
        self.content = b""

    def write(self, block):
        if len(self.content) == 7:
            raise OSError(28, "No space left on device")
        part = bytes(block[: min(3, 7 - len(self.content))])
        self.content += part
        return len(part)


def test_short_writes_are_continued_and_full_disks_seen():
    file = Short()
    write_all(file, b"1234567")
    assert file.content == b"1234567"
    with pytest.raises(OSError, match="No space"):
        write_all(Short(), b"12345678")


def test_append_adds_all_or_nothing(tmp_path):
    path = tmp_path / "lines.jsonl"
    append(path, b"first\n")
    with disk_of(10), pytest.raises(WriteError, match=r"lines\.jsonl cannot be written: File too"):
        append(path, b"second\n")
    assert path.read_bytes() == b"first\n"
    append(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


@pytest.mark.parametrize("size", [1000, 100_000])  # less and more than a buffer
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, size):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"old")
    with (
        disk_of(size // 2),
        pytest.raises(WriteError, match=r"/a\.tsv cannot be written: File too"),
    ):
        write_bytes(path, bytes(size))
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), atomic_write(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"/file cannot be written: File exists"):
        write_bytes(tmp_path / "file" / "a", b"x")


def test_a_file_opened_alone_is_not_emptied_by_another_process(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("old")
    with open_alone(path) as file:
        assert path.stat().st_size == 0
        file.write(b"ours")
        command = [sys.executable, "-c", OPEN, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "another process writes it\n"
        assert path.read_bytes() == b"ours"
    subprocess.run(command, check=True)
    assert path.read_bytes() == b""


def test_a_lock_is_released_with_its_block(tmp_path):
    path = tmp_path / "x.lock"
    with locked(path) as outer, locked(path) as inner:
        assert outer and inner
    assert not path.exists()
    with held_elsewhere(path), locked(path) as held:
        assert not held

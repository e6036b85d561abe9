"""Temporary files of killed writers are removed, those of living ones stay."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ofa_exit.data.files import atomic_write, hold_lock, remove_leftovers, write_bytes
from ofa_exit.data.row_index import Stamp, index_path, write_index
from ofa_exit.prepare.problems import Problems

WRITE = """
import sys
from pathlib import Path
from ofa_exit.data.files import atomic_write
with atomic_write(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""
HOLD = """
import sys
from pathlib import Path
from ofa_exit.data.files import hold_lock
print(hold_lock(Path(sys.argv[1])), hold_lock(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def process(code, path):
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, stdin=-1, stdout=-1, text=True)


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    path = tmp_path / "a.tsv"
    other = tmp_path / ".a.tsv.notes"  # not of a writer
    other.touch()
    with process(WRITE, path) as living, process(WRITE, path) as killed:
        assert [one.stdout.readline() for one in (living, killed)] == ["writing\n"] * 2
        assert len(os.listdir(tmp_path)) == 3
        killed.kill()
        killed.wait()
        write_bytes(path, b"ours")
        assert len(os.listdir(tmp_path)) == 3  # ours, the other file, and that of the living one
        living.communicate()
    assert path.read_bytes() == b"half"
    assert set(os.listdir(tmp_path)) == {"a.tsv", ".a.tsv.notes"}


def test_problems_remove_leftovers_even_without_problems(tmp_path):
    with process(WRITE, tmp_path / "a.tsv.problems.txt") as killed:
        killed.stdout.readline()
        killed.kill()
    assert len(os.listdir(tmp_path)) == 1
    with Problems(tmp_path / "a.tsv"):
        pass
    assert os.listdir(tmp_path) == []


def test_parts_of_an_index_are_removed(tmp_path):
    path = tmp_path / "a.tsv"
    index_path(path).parent.mkdir()
    index_path(path).with_name("a.tsv.offsets.0123.part").touch()
    write_index(path, Stamp(1, 2), np.arange(2))
    assert os.listdir(index_path(path).parent) == ["a.tsv.offsets"]


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path):
    with process(HOLD, tmp_path / "lock") as other:
        assert other.stdout.readline() == "True True\n"
        assert not hold_lock(tmp_path / "lock")
        other.communicate()
    assert os.listdir(tmp_path) == []  # no file stays after a normal end
    assert hold_lock(tmp_path / "lock")


def test_an_error_leaves_no_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_file_is_locked_until_it_has_its_name(tmp_path, monkeypatch):
    path, rename = tmp_path / "a.tsv", os.replace

    def late(source, target):
        remove_leftovers(path)  # as another writer does
        rename(source, target)

    monkeypatch.setattr(os, "replace", late)
    write_bytes(path, b"ours")
    assert path.read_bytes() == b"ours" and len(os.listdir(tmp_path)) == 1

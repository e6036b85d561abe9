"""The index file of a TSV: kept, rebuilt, locked, and shared between processes."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import queue as queues
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.data_samples import write_tsv

from ofa_exit.data import row_index
from ofa_exit.data.row_index import index_path
from ofa_exit.data.tsv import TsvError, TsvFile

COLUMNS = ("uniq_id", "text")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def texts(file: TsvFile) -> list[str]:
    return [file.row(index)["text"] for index in range(len(file))]


def test_index_is_kept_used_and_rebuilt_when_the_file_changes(tmp_path, monkeypatch):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    TsvFile(path, None, COLUMNS)
    assert sorted(files(tmp_path)) == [index_path(path), path]
    assert [p.name for p in tmp_path.iterdir() if p != path] == [".ofa-exit"]

    counted = []
    count = row_index._scan
    monkeypatch.setattr(row_index, "_scan", lambda file: counted.append(1) or count(file))
    assert texts(TsvFile(path, None, COLUMNS)) == ["one", "two"]
    assert counted == []

    status = path.stat()
    write_tsv(path, [["1", "other"], ["2", "x"], ["3", "y"]])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 5))
    assert texts(TsvFile(path, None, COLUMNS)) == ["other", "x", "y"]
    # The same size at another time is another file.
    write_tsv(path, [["1", "o"], ["2", "xxxxx"], ["3", "y"]])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10))
    assert texts(TsvFile(path, None, COLUMNS)) == ["o", "xxxxx", "y"]
    assert len(counted) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "odd", "zip", "header", "shape"])
def test_damaged_index_is_rebuilt(tmp_path, damage):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    TsvFile(path, None, COLUMNS)
    index = index_path(path)
    good = index.read_bytes()
    changed = {
        "cut": good[:-8],
        "empty": b"",
        "foreign": b"x" * len(good),
        "odd": good[:-3],
        "zip": b"PK\x03\x04",
        "header": good.replace(b"}", b"("),
        "shape": good.replace(b"(5,)         ", b"(1%s,)" % (b"0" * 9)),
    }
    index.write_bytes(changed[damage])
    assert texts(TsvFile(path, None, COLUMNS)) == ["one", "two"]
    assert index.read_bytes() == good


@pytest.mark.parametrize("change", ["other stamp", "other type", "other shape", "no offsets"])
def test_index_of_another_file_or_layout_is_rebuilt(tmp_path, change):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    TsvFile(path, None, COLUMNS)
    good = np.load(index_path(path))
    changed = {
        "other stamp": good + np.array([0, 1, *[0] * (len(good) - 2)]),
        "other type": good.astype(np.float64),
        "other shape": good[None],
        "no offsets": good[:2],
    }
    with index_path(path).open("wb") as file:
        np.save(file, changed[change])
    assert texts(TsvFile(path, None, COLUMNS)) == ["one", "two"]
    assert np.array_equal(np.load(index_path(path)), good)


ROWS = [[str(n), f"row {n}"] for n in range(300)]


@pytest.mark.parametrize(
    ("damage", "cut"),
    {
        "without the last row": lambda good: good[:-1],
        "without the first row": lambda good: np.delete(good, 2),
        "a row less at the end": lambda good: np.delete(good, -2),
        "a row twice": lambda good: np.insert(good, 50, good[50]),
        "backwards": lambda good: np.concatenate([good[:50], good[51:49:-1], good[52:]]),
        "shifted": lambda good: np.concatenate([good[:2], good[2:3], good[3:-1] + 1, good[-1:]]),
        "past the end": lambda good: np.append(good, good[-1] + 9),
    }.items(),
)
def test_an_index_that_does_not_cover_the_file_is_rebuilt(tmp_path, caplog, damage, cut):
    path = write_tsv(tmp_path / "a.tsv", ROWS)
    TsvFile(path, None, COLUMNS)
    good = np.load(index_path(path))
    with index_path(path).open("wb") as file:
        np.save(file, cut(good))
    assert texts(TsvFile(path, None, COLUMNS)) == [text for _, text in ROWS], damage
    assert f"{index_path(path)} does not fit {path}: indexing the file again" in caplog.text
    assert np.array_equal(np.load(index_path(path)), good)


def test_a_row_of_a_damaged_index_is_never_read(tmp_path):
    """Between the rows that are sampled when the file is opened."""
    path = write_tsv(tmp_path / "a.tsv", ROWS)
    TsvFile(path, None, COLUMNS)
    good = np.load(index_path(path))
    sampled = set(range(0, 300, 300 // row_index._ROWS_SAMPLED))
    row = next(n for n in range(100, 200) if not {n - 1, n} & sampled)
    shifted = good.copy()
    shifted[2 + row] -= 2  # "5\n6\trow 6": the end of one line moves to the next
    with index_path(path).open("wb") as file:
        np.save(file, shifted)
    rows = TsvFile(path, None, COLUMNS)
    for wrong in (row - 1, row):
        with pytest.raises(TsvError, match=r"line \d+: .*offsets is damaged. Delete that file"):
            rows.row(wrong)
    assert rows.row(row + 1)["text"] == f"row {row + 1}"


def test_empty_lines_at_the_end_are_covered(tmp_path, caplog):
    path = write_tsv(tmp_path / "a.tsv", ROWS[:2])
    path.write_bytes(path.read_bytes() + b"\r\n\n\n")
    for _ in range(2):
        assert len(TsvFile(path, None, COLUMNS)) == 2
    assert not caplog.text


def test_index_of_an_earlier_version_is_rebuilt(tmp_path):
    """It began with a magic number, then size, mtime and the number of offsets, as int64 words."""
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    status = path.stat()
    wrong = [0x0FA0_1DE8_0000_0001, status.st_size, status.st_mtime_ns, 2, 0, status.st_size]
    index_path(path).parent.mkdir()
    index_path(path).write_bytes(np.array(wrong, dtype=np.int64).tobytes())
    assert texts(TsvFile(path, None, COLUMNS)) == ["one", "two"]
    assert index_path(path).read_bytes().startswith(b"\x93NUMPY")


def test_unwritable_folder_falls_back_to_memory(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    file = TsvFile(path, None, COLUMNS)
    assert texts(pickle.loads(pickle.dumps(file))) == texts(file) == ["one", "two"]
    assert files(tmp_path) == [path]


def test_concurrent_readers_build_one_index(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [[str(n), f"row {n}"] for n in range(3000)])
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(texts(TsvFile(path, None, COLUMNS))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert all(rows == [f"row {n}" for n in range(3000)] for rows in seen)
    assert set(files(tmp_path)) == {path, index_path(path)}


def lock_path(path: Path) -> Path:
    return index_path(path).with_name(f"{path.name}.offsets.lock")


def _read(path: Path, queue) -> None:
    queue.put(texts(TsvFile(path, None, COLUMNS)))


def test_one_process_indexes_and_the_others_wait(tmp_path, monkeypatch):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"], ["2", "two"]])
    scan, lock, log = row_index._scan, row_index._indexing_lock, tmp_path / "log"
    context = multiprocessing.get_context("fork")
    no_index_found, queue = context.Barrier(4), context.Queue()

    def lock_when_all_want_it(path):
        no_index_found.wait()
        return lock(path)

    def logged_scan(file):
        with log.open("ab") as lines:
            lines.write(b".")
        return scan(file)

    monkeypatch.setattr(row_index, "_indexing_lock", lock_when_all_want_it)
    monkeypatch.setattr(row_index, "_scan", logged_scan)
    children = [context.Process(target=_read, args=(path, queue)) for _ in range(4)]
    for child in children:
        child.start()
    assert [queue.get(timeout=600) for _ in children] == [["one", "two"]] * 4
    for child in children:
        child.join()
    assert log.read_bytes() == b"."
    assert not lock_path(path).exists()


def _die_with_the_lock(path: Path) -> None:
    with row_index._indexing_lock(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"]])
    child = multiprocessing.get_context("fork").Process(target=_die_with_the_lock, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and lock_path(path).exists()
    assert texts(TsvFile(path, None, COLUMNS)) == ["one"]
    assert not lock_path(path).exists() and index_path(path).exists()


def test_waiting_for_another_process_is_logged(tmp_path, monkeypatch):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"]])
    lines: queues.Queue[str] = queues.Queue()
    monkeypatch.setattr(row_index.logger, "info", lambda text, *of: lines.put(text % of))
    read = []
    reader = threading.Thread(target=lambda: read.append(texts(TsvFile(path, None, COLUMNS))))
    with row_index._indexing_lock(path):
        reader.start()
        assert f"{path}: waiting for another process to index it" in lines.get(timeout=600)
        assert not read
    reader.join(timeout=600)
    assert read == [["one"]]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"]])
    assert texts(TsvFile(path, None, COLUMNS)) == ["one"]
    assert set(files(tmp_path)) == {path, index_path(path)}


def test_read_only_folder(tmp_path, monkeypatch):
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"]])
    original = Path.open

    def reading_only(self, mode="r", *args, **kwargs):
        if "r" not in mode:
            raise PermissionError(errno.EROFS, "read-only")
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", reading_only)
    assert texts(TsvFile(path, None, COLUMNS)) == ["one"]
    assert files(tmp_path) == [path]


def test_folder_that_admits_no_folder(tmp_path):
    """A file stands where the folder of indexes should be, which no permission hides from root."""
    path = write_tsv(tmp_path / "a.tsv", [["1", "one"]])
    index_path(path).parent.touch()
    assert texts(TsvFile(path, None, COLUMNS)) == ["one"]
    assert set(files(tmp_path)) == {path, index_path(path).parent}

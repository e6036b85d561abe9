"""Byte offsets of a file's rows, computed once and shared between processes through an index file.

The index of ``FOLDER/FILE`` is ``FOLDER/.ofa-exit/FILE.offsets``, an int64 array written by
``numpy.save``: ``[size, mtime, offset 0, …, offset N]``. Size (bytes) and mtime (ns) are the stamp
of the indexed file. Row ``i`` is the bytes from offset ``i`` to offset ``i + 1``. The folder is
hidden because fairseq takes every file of a data folder that begins with ``valid1`` for a subset.
"""

import contextlib
import glob
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 22
_INDEX_FOLDER = ".ofa-exit"


class Stamp(NamedTuple):
    """Size (bytes) and modification time (ns) of a file. An index is valid for one stamp only."""

    size: int
    mtime: int

    @classmethod
    def from_stat(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_size, status.st_mtime_ns)


def file_stamp(file: BinaryIO) -> Stamp:
    return Stamp.from_stat(os.fstat(file.fileno()))


def index_path(path: Path) -> Path:
    """Return where the index of ``path`` is kept."""
    return path.parent / _INDEX_FOLDER / f"{path.name}.offsets"


def row_offsets(path: Path) -> tuple[Stamp, np.ndarray]:
    """Return the stamp of ``path`` and the byte offsets of its rows, int64 [rows + 1].

    Empty lines at the end of the file are not rows. An index that fits the file's stamp is mapped
    into memory, so that all processes share its pages. Otherwise one process writes the index and
    the others wait. Where it cannot be written, each process keeps the offsets in its own memory.

    Raises:
        OSError: ``path`` cannot be read.
        RuntimeError: ``path`` changes while it is indexed.
    """
    with path.open("rb") as file:
        stamp = file_stamp(file)
        offsets = _load(index_path(path), stamp)
        if offsets is not None:
            return stamp, offsets
        with _indexing_lock(path):
            # Another process may have written it while this one waited.
            offsets = _load(index_path(path), stamp)
            if offsets is not None:
                return stamp, offsets
            offsets = _scan(file)
            if file_stamp(file) != stamp:
                raise RuntimeError("the file is being written")
            with contextlib.suppress(OSError):
                write_index(path, stamp, offsets)
                mapped = _load(index_path(path), stamp)
                offsets = offsets if mapped is None else mapped
    return stamp, offsets


def write_index(path: Path, stamp: Stamp, offsets: np.ndarray) -> None:
    """Write the index of ``path`` atomically. Raises OSError where that is not possible.

    Temporary files of other processes are removed. Most were killed. One that is alive and has no
    lock, as on file systems without locks, gets an OSError.

    Args:
        offsets: int64 [rows + 1], the start of each row, then the end of the last one.
    """
    index = index_path(path)
    partial = index.with_name(f"{index.name}.{uuid.uuid4().hex}.part")
    index.parent.mkdir(exist_ok=True)
    for other in index.parent.glob(f"{glob.escape(index.name)}.*.part"):
        other.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:
            np.save(file, np.concatenate([np.array(stamp, dtype=np.int64), offsets]))
        os.replace(partial, index)
    finally:
        partial.unlink(missing_ok=True)


def _load(index: Path, stamp: Stamp) -> np.ndarray | None:
    """Map the offsets of an index. Return None if it is missing, damaged or of another stamp."""
    try:
        table = np.load(index, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 1:
        return None
    # A plain view: it pickles as its numbers, and indexing it costs less than indexing a memmap.
    table = np.asarray(table)
    return table[2:] if len(table) > 2 and tuple(table[:2].tolist()) == stamp else None


@contextlib.contextmanager
def _indexing_lock(path: Path) -> Iterator[None]:
    """Admit one process at a time to index ``path``, on file systems that have locks.

    The operating system releases the lock of a process that dies. Without locks, as in a read-only
    folder, every process is admitted: each writes an index of its own and renames it into place.
    """
    lock_path = index_path(path).with_name(f"{index_path(path).name}.lock")
    lock = FileLock(lock_path)
    with contextlib.suppress(OSError):
        lock_path.parent.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("%s: waiting for another process to index it (%s)", path, lock_path)
            lock.acquire()
    try:
        yield
    finally:
        # Removed before the release: a process that makes a new lock file finds the index.
        with contextlib.suppress(OSError):
            lock_path.unlink()
        lock.release()


def _scan(file: BinaryIO) -> np.ndarray:
    """Find the offsets of the rows, int64 [rows + 1], in chunks: a line may exceed the memory."""
    found = [np.zeros(1, dtype=np.int64)]
    start = 0
    with tqdm(
        desc=f"indexing {Path(file.name).name}",
        total=file_stamp(file).size,
        unit="B",
        unit_scale=True,
        delay=5,  # seconds; most files take less
        leave=False,
    ) as bar:
        while chunk := file.read(_CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
            found.append(ends + (start + 1))
            start += len(chunk)
            bar.update(len(chunk))
    offsets = np.concatenate(found)
    if offsets[-1] < start:  # the last line has no line end
        offsets = np.append(offsets, start)
    # Empty lines at the end, of one or two bytes each, are not rows.
    while len(offsets) > 1 and offsets[-1] - offsets[-2] <= 2:
        file.seek(int(offsets[-2]))
        if file.read(int(offsets[-1] - offsets[-2])).strip(b"\r\n"):
            break
        offsets = offsets[:-1]
    return offsets

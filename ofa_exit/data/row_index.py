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

from ofa_exit.regular_files import regular_file

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 22
_CHUNK_ROWS = 1 << 20
_ROWS_SAMPLED = 64
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

    Empty lines at the end of the file are not rows. An index that fits the file is mapped
    into memory, so that all processes share its pages. Otherwise one process writes the index and
    the others wait. Where it cannot be written, each process keeps the offsets in its own memory.

    Raises:
        OSError: ``path`` cannot be read.
        RuntimeError: ``path`` changes while it is indexed.
    """
    with regular_file(path).open("rb") as file:
        stamp = file_stamp(file)
        offsets = _load_checked(path, stamp, file)
        if offsets is not None:
            return stamp, offsets
        with _indexing_lock(path):
            # Another process may have written it while this one waited.
            offsets = _load_checked(path, stamp, file)
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
        table = np.load(regular_file(index), mmap_mode="r")
    except Exception:  # on damaged bytes numpy raises nearly anything
        return None
    if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 1:
        return None
    # A plain view: it pickles as its numbers, and indexing it costs less than indexing a memmap.
    table = np.asarray(table)
    return table[2:] if len(table) > 2 and tuple(table[:2].tolist()) == stamp else None


def _load_checked(path: Path, stamp: Stamp, file: BinaryIO) -> np.ndarray | None:
    """Return the offsets of the index of ``path``, or None if there is none that fits the file."""
    offsets = _load(index_path(path), stamp)
    if offsets is None or _fits(offsets, file, stamp.size):
        return offsets
    logger.warning("%s does not fit %s: indexing the file again", index_path(path), path)
    return None


def _fits(offsets: np.ndarray, file: BinaryIO, size: int) -> bool:
    """Return whether offsets cover a file of ``size`` bytes, and a sample of rows are lines.

    `TsvFile` checks every row that it reads. One outside the sample that is no line stops the run,
    because batches have been made of the index by then.
    """
    if offsets[0] != 0 or not 0 <= offsets[-1] <= size:
        return False
    for start in range(0, len(offsets) - 1, _CHUNK_ROWS):
        part = offsets[start : start + _CHUNK_ROWS + 1]
        if (part[1:] <= part[:-1]).any():
            return False
    # Only empty lines may follow the last row.
    file.seek(int(offsets[-1]))
    while chunk := file.read(_CHUNK_BYTES):
        if chunk.strip(b"\r\n"):
            return False
    rows = len(offsets) - 1
    sample = {0, rows - 1, *range(0, rows, max(1, rows // _ROWS_SAMPLED))} if rows else set()
    for row in sorted(sample):
        start, end = offsets[row : row + 2].tolist()
        before = max(0, start - 1)
        if not is_line(os.pread(file.fileno(), end - before, before), start == 0, end == size):
            return False
    return True


def is_line(content: bytes, is_first: bool, is_last: bool) -> bool:
    """Return whether bytes of a file are one whole line.

    Args:
        content: begins with the byte before the line, unless ``is_first``.
        is_last: the file ends here, so that the line needs no line end.
    """
    if not is_first and not content.startswith(b"\n"):
        return False
    found = content.find(b"\n", 0 if is_first else 1)
    return found == len(content) - 1 or (found < 0 and is_last)


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
    file.seek(0)
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

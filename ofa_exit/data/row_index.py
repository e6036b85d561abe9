"""Byte offsets of a file's rows, found once and kept beside it for every process to share."""

import contextlib
import fcntl
import logging
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from ofa_exit.data.index_file import (
    HEADER,
    MAGIC,
    WORD,
    Stamp,
    file_stamp,
    index_path,
    write_index,
)

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22


def row_offsets(path: Path) -> tuple[Stamp, Tensor]:
    """The stamp of ``path`` and Long[rows + 1]: row i is the bytes from offset i to offset i + 1.

    Empty lines at the end of the file are no rows. The index beside the file is used while it
    fits the file's stamp and made otherwise, by one process while the others wait; it is mapped,
    not read, so all processes share one copy. Where it cannot be written each keeps its own in
    memory.

    Raises OSError when ``path`` cannot be read, RuntimeError when it changes meanwhile.
    """
    with path.open("rb") as file:
        stamp = file_stamp(file)
        offsets = _load(index_path(path), stamp)
        if offsets is not None:
            return stamp, offsets
        with _alone(path):
            offsets = _load(index_path(path), stamp)  # by now another process may have made it
            if offsets is not None:
                return stamp, offsets
            counted = _count(file)
            if file_stamp(file) != stamp:
                raise RuntimeError("the file is being written")
            with contextlib.suppress(OSError):
                write_index(path, stamp, counted)
                offsets = _load(index_path(path), stamp)
    if offsets is None:
        offsets = torch.tensor(counted, dtype=torch.long)
    return stamp, offsets


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets in one process at a time to index ``path``, on file systems that have locks.

    A lock ends with the process that holds it, however that ends; a file left behind locks nobody
    out. Where no lock can be had, in a folder that cannot be written or a file system without
    them, all are let in: each writes an index of its own and renames it into place.
    """
    lock = index_path(path).with_name(f"{index_path(path).name}.lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            held = stack.enter_context(lock.open("ab"))
            # Whoever opens another file of this name after that finds the index.
            stack.callback(_remove, lock)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: waiting for another process to index it (%s)", path, lock)
                fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _count(file: BinaryIO) -> array:
    """Offsets of the rows, reading in pieces: a line may be longer than memory allows."""
    offsets = array("q", [0])
    start = 0
    with tqdm(
        desc=f"indexing {Path(file.name).name}",
        total=file_stamp(file).size,
        unit="B",
        unit_scale=True,
        delay=5,  # seconds; most files take less
        leave=False,
    ) as bar:
        while chunk := file.read(_CHUNK):
            at = chunk.find(b"\n")
            while at >= 0:
                offsets.append(start + at + 1)
                at = chunk.find(b"\n", at + 1)
            start += len(chunk)
            bar.update(len(chunk))
    if offsets[-1] < start:
        offsets.append(start)
    while len(offsets) > 1 and offsets[-1] - offsets[-2] <= 2:
        file.seek(offsets[-2])
        if file.read(offsets[-1] - offsets[-2]).strip(b"\r\n"):
            break
        offsets.pop()
    return offsets


def _load(path: Path, stamp: Stamp) -> Tensor | None:
    """The offsets mapped from an index file; None when there is none, or it is another file's."""
    try:
        words, rest = divmod(path.stat().st_size, WORD)
        if rest or words < HEADER + 1:
            return None
        # A private mapping is opened for reading only; its pages are the page cache's.
        table = torch.from_file(str(path), shared=False, size=words, dtype=torch.long)
    except (OSError, RuntimeError):
        return None
    if table[:HEADER].tolist() != [MAGIC, *stamp, words - HEADER]:
        return None
    return table[HEADER:]

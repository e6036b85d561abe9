"""Byte offsets of a file's lines, found once and kept beside it for every process to share."""

import contextlib
import os
import uuid
from array import array
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 22
# The words of an index file before its offsets: this number, then size and mtime (ns) of the
# indexed file, then the number of offsets.
_MAGIC = 0x0FA0_1DE8_0000_0001
_HEADER = 4
_WORD = 8


class Stamp(NamedTuple):
    """Size (bytes) and modification time (ns) of a file: an index counts for one stamp only."""

    size: int
    mtime: int


def file_stamp(file: BinaryIO) -> Stamp:
    status = os.fstat(file.fileno())
    return Stamp(status.st_size, status.st_mtime_ns)


def index_path(path: Path) -> Path:
    """Where the index of ``path`` is kept."""
    return path.with_name(path.name + ".offsets")


def row_offsets(path: Path) -> tuple[Stamp, Tensor]:
    """The stamp of ``path`` and Long[rows + 1]: row i is the bytes from offset i to offset i + 1.

    Empty lines at the end of the file are no rows. The index beside the file is used while it
    fits the file's stamp and written otherwise; it is mapped, not read, so all processes share
    one copy. Where it cannot be written it stays in memory. Any number of processes may do this
    at once: each writes a file of its own and renames it into place.

    Raises OSError when ``path`` cannot be read, RuntimeError when it changes meanwhile.
    """
    with path.open("rb") as file:
        stamp = file_stamp(file)
        offsets = _load(index_path(path), stamp)
        if offsets is not None:
            return stamp, offsets
        counted = _count(file)
        if file_stamp(file) != stamp:
            raise RuntimeError("the file is being written")
    with contextlib.suppress(OSError):
        _save(index_path(path), stamp, counted)
        offsets = _load(index_path(path), stamp)
    if offsets is None:
        offsets = torch.tensor(counted, dtype=torch.long)
    return stamp, offsets


def _count(file: BinaryIO) -> array:
    """Offsets of the rows, reading in pieces: a line may be longer than memory allows."""
    offsets = array("q", [0])
    start = 0
    while chunk := file.read(_CHUNK):
        at = chunk.find(b"\n")
        while at >= 0:
            offsets.append(start + at + 1)
            at = chunk.find(b"\n", at + 1)
        start += len(chunk)
    if offsets[-1] < start:
        offsets.append(start)
    while len(offsets) > 1 and offsets[-1] - offsets[-2] <= 2:
        file.seek(offsets[-2])
        if file.read(offsets[-1] - offsets[-2]).strip(b"\r\n"):
            break
        offsets.pop()
    return offsets


def _save(path: Path, stamp: Stamp, offsets: array) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            file.write(array("q", [_MAGIC, *stamp, len(offsets)]))
            file.write(offsets)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _load(path: Path, stamp: Stamp) -> Tensor | None:
    """The offsets mapped from an index file; None when there is none, or it is another file's."""
    try:
        words, rest = divmod(path.stat().st_size, _WORD)
        if rest or words < _HEADER + 1:
            return None
        # A private mapping is opened for reading only; its pages are the page cache's.
        table = torch.from_file(str(path), shared=False, size=words, dtype=torch.long)
    except (OSError, RuntimeError):
        return None
    if table[:_HEADER].tolist() != [_MAGIC, *stamp, words - _HEADER]:
        return None
    return table[_HEADER:]

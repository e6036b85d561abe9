"""The index beside a data file: where its rows begin. Written by whoever knows, without torch."""

import os
import uuid
from array import array
from pathlib import Path
from typing import BinaryIO, NamedTuple

# The words of an index before its offsets: this number, then size and mtime (ns) of the indexed
# file, then the number of offsets.
MAGIC = 0x0FA0_1DE8_0000_0001
HEADER = 4
WORD = 8


class Stamp(NamedTuple):
    """Size (bytes) and modification time (ns) of a file: an index counts for one stamp only."""

    size: int
    mtime: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_size, status.st_mtime_ns)


def file_stamp(file: BinaryIO) -> Stamp:
    return Stamp.of(os.fstat(file.fileno()))


def index_path(path: Path) -> Path:
    """Where the index of ``path`` is kept."""
    return path.with_name(path.name + ".offsets")


def write_index(path: Path, stamp: Stamp, offsets: array) -> None:
    """Write the index of ``path`` atomically; OSError where it cannot be.

    offsets: int64, where each row begins, and the end of the last one.
    """
    index = index_path(path)
    partial = index.with_name(f"{index.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            file.write(array("q", [MAGIC, *stamp, len(offsets)]))
            file.write(offsets)
        os.replace(partial, index)
    finally:
        partial.unlink(missing_ok=True)

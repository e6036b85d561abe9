"""Write files to their end, or raise an error that names the file and the reason."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import BinaryIO

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REMEDY = "Make room, or allow writing, and run the same command again"


class WriteError(OSError):
    """A file that cannot be written to its end."""

    def __init__(self, path: str | os.PathLike[str], error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error), os.fspath(path))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}. {REMEDY}"


@contextlib.contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError into a WriteError of ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write to an unbuffered file.

    On a full disk, a call writes what fits and returns its size. Only the next call raises.
    """
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def append(path: str | os.PathLike[str], content: bytes) -> None:
    """Append to a file. What fitted of ``content`` is removed if not all of it fits.

    Raises:
        WriteError: it cannot be written to its end.
    """
    with write_errors(path), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            write_all(file, content)
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def open_alone(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, empty and unbuffered, that no other process may open so until it is closed.

    On file systems without locks, every process gets it. The lock also ends when this process
    closes another file object of ``path``, so it must not read the file meanwhile.

    Raises:
        BlockingIOError: another process has it open. It stays as it is.
        OSError: it cannot be written.
    """
    file = open(path, "ab", buffering=0)  # noqa: SIM115
    try:
        # A lock of the process: a file that it left open, as after an error, does not block it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            reason = "another process writes it"
            raise BlockingIOError(error.errno, reason, os.fspath(path)) from None
    file.truncate(0)
    return file

"""Write files atomically, lock and hash them."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import filecmp
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from ofa_exit.regular_files import regular_file
from ofa_exit.writing import FULL, WriteError, write_errors


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file next to ``path`` and rename it to ``path`` when the block succeeds.

    A block that raises leaves neither a partial ``path`` nor the temporary file. Those that killed
    writers of ``path`` left are removed. A file that already holds the same bytes is not replaced,
    so that its readers are not disturbed.

    Raises:
        WriteError: the disk is full, or the folder cannot be written. ``path`` stays as it was.
    """
    if path.exists() and not path.is_dir():
        regular_file(path)  # renaming would replace a device
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with write_errors(path):
        remove_leftovers(path)
        handle, name = _locked_temporary_file(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(handle)  # some file systems report a full disk only here
            # Still locked: what another writer takes for a leftover, it removes.
            if path.is_file() and filecmp.cmp(name, path, shallow=False):
                os.unlink(name)
                return
            os.chmod(name, 0o644)
            os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError) and _is_of_output(error, name):
            raise WriteError(path, error) from error
        raise


def _is_of_output(error: OSError, name: str) -> bool:
    """Return whether an error is one of writing ``name``. Those of writing name no file."""
    return error.filename == name or (error.filename is None and error.errno in FULL)


def _locked_temporary_file(path: Path) -> tuple[int, str]:
    """Create a temporary file next to ``path``. Its lock shows that its writer is alive."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process removed it before it was locked


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` whose writers have been killed.

    The operating system releases the lock of a process that dies. Where there are no locks, or the
    folder is read-only, the files stay.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        with contextlib.suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the writer is alive
            leftover.unlink()


_held: dict[Path, FileLock] = {}


def hold_lock(path: Path) -> bool:
    """Lock a file for the rest of this process; return False if another process holds it.

    On file systems without locks, every process gets it.
    """
    path = path.resolve()
    if path in _held:
        return True
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError:
        return True
    _held[path] = lock
    atexit.register(_release, path)
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file during the block, see ``hold_lock``; yield whether this worked."""
    path = path.resolve()
    is_new = path not in _held
    is_held = hold_lock(path)
    try:
        yield is_held
    finally:
        if is_new:
            _release(path)


def _release(path: Path) -> None:
    lock = _held.pop(path, None)
    if lock is not None:
        # Removed before the release, so that the file of the next holder stays.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_write(path) as stream:
        stream.write(content)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with regular_file(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()

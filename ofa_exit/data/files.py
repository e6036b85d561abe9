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


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file next to ``path`` and rename it to ``path`` when the block succeeds.

    A block that raises leaves neither a partial ``path`` nor the temporary file. Those that killed
    writers of ``path`` left are removed. A file that already holds the same bytes is not replaced,
    so that its readers are not disturbed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        regular_file(path)  # renaming would replace a device
    remove_leftovers(path)
    handle, name = _locked_temporary_file(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            # Still locked: what another writer takes for a leftover, it removes.
            if path.is_file() and filecmp.cmp(name, path, shallow=False):
                os.unlink(name)
                return
            os.chmod(name, 0o644)
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


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


def _release(path: Path) -> None:
    # Removed before the release, so that the file of the next holder stays.
    with contextlib.suppress(OSError):
        path.unlink()
    _held.pop(path).release()


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

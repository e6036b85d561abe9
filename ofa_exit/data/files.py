"""Write files atomically, and hash them."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ofa_exit.regular_files import regular_file


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file next to ``path`` and rename it to ``path`` when the block succeeds.

    A block that raises leaves neither a partial ``path`` nor the temporary file. A file that
    already holds the same bytes is not replaced, so that its readers are not disturbed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        regular_file(path)  # renaming would replace a device
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
        if path.is_file() and filecmp.cmp(name, path, shallow=False):
            os.unlink(name)
            return
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


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

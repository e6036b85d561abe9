"""Paths of inputs and outputs: regular files only, and no output that is also an input."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class IrregularFileError(OSError):
    """A pipe, device or socket where a file is read."""

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        super().__init__(errno.EINVAL, f"it is {kind}, not a regular file", os.fspath(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def _kind(status: os.stat_result) -> str | None:
    """Return what a path is that is neither a regular file nor a folder; None for these two."""
    return next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), None)


def regular_file(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if it is a regular file.

    Opening a pipe waits for a writer, and a device such as /dev/zero never ends.

    Raises:
        OSError: it is missing, a loop of links, or no regular file. A folder is IsADirectoryError.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if (kind := _kind(status)) is not None:
        raise IrregularFileError(path, kind)
    return Path(path)


def paths_in(values: Any) -> Iterator[str]:
    """Yield every text that may be a path: in lists, joined by commas or colons, after NAME=."""
    if isinstance(values, (str, os.PathLike)):
        text = str(values)
        yield from {text, *re.split("[,:]", text), text.partition("=")[2]}
    elif isinstance(values, Mapping):
        yield from paths_in(list(values.values()))
    elif isinstance(values, Iterable):
        for value in values:
            yield from paths_in(value)


def check_output(option: str, path: str | os.PathLike[str], inputs: Any = ()) -> None:
    """Raise ValueError if writing ``path`` would destroy an input, or does not make a file.

    Args:
        option: what a message calls the output.
        inputs: values that name files of the same command, see ``paths_in``.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(
            f"{option} {path}: cannot be written ({error.strerror}). Name another file"
        ) from error
    if (kind := _kind(status)) is not None:
        raise ValueError(f"{option} {path} is {kind}, not a regular file. Name another file")
    for other in paths_in(inputs):
        try:
            is_input = os.path.samestat(status, os.stat(other))
        except (OSError, ValueError):  # ValueError: a null byte
            continue
        if is_input:
            raise ValueError(
                f"{option} {path} is also an input, which would be overwritten. Name another file"
            )

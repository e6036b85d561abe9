"""The elements of a large JSON file one by one: memory for one element, not for the file."""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ijson
import numpy as np

from ofa_exit.regular_files import regular_file

from .records import PrepareError

# Lists and objects within each other. The parser's memory grows with the square of their number.
DEEPEST = 5_000


def elements(path: Path, *keys: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, element) of the array, or (key, value) of the object, found at ``keys``.

    Places count from 0. Raises PrepareError: the file is unreadable, truncated or not JSON, or has
    no such key.
    """
    prefix = ".".join(keys)
    try:
        status = regular_file(path).stat()
        if _depth(path, status.st_size, status.st_mtime_ns) > DEEPEST:
            raise PrepareError(
                f"{path}: over {DEEPEST:,} lists or objects within each other. Download it again"
            )
        with regular_file(path).open("rb") as file:
            # A byte order mark is not JSON, but some editors write one.
            start = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(start)
            events = ijson.parse(file, use_float=True)
            kind = next((event for found, event, _ in events if found == prefix), None)
            file.seek(start)
            if kind == "start_array":
                item = f"{prefix}.item" if keys else "item"
                for place, value in enumerate(ijson.items(file, item, use_float=True)):
                    yield str(place), value
            elif kind == "start_map":
                yield from ijson.kvitems(file, prefix, use_float=True)
            else:
                found = f"{prefix!r} is missing" if kind is None else f"{prefix!r} is {kind}"
                raise PrepareError(
                    f"{path}: {found}, and a list or an object was expected. Is this another file? "
                    "Download it again"
                )
    except (ijson.JSONError, ValueError, OverflowError, RecursionError) as error:
        # The parser quotes bytes that are not UTF-8 as they are.
        message = error.args[0] if error.args else ""
        text = message.decode(errors="replace") if isinstance(message, bytes) else str(error)
        reason = text.strip().partition("\n")[0]
        raise PrepareError(
            f"{path} is not JSON ({reason}). It may be truncated: download it again"
        ) from error
    except OSError as error:
        raise PrepareError(f"{path} cannot be read ({error}). Download it again") from error


@functools.lru_cache(maxsize=64)
def _depth(path: Path, size: int, mtime: int) -> int:
    """Return how deep lists and objects of a file go. Brackets within texts count, too."""
    steps = np.zeros(256, dtype=np.int64)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    depth = deepest = 0
    with regular_file(path).open("rb") as file:
        while block := file.read(1 << 16):
            depths = depth + steps[np.frombuffer(block, dtype=np.uint8)].cumsum()
            depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
    return deepest


def of_form(
    path: Path, entries: Iterable[tuple[str, Any]], keys: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    """Yield the entries of ``path``. Raises PrepareError if the first lacks several of ``keys``.

    Then the file belongs to another data set. One missing key may be a single bad record.
    """
    for number, (place, entry) in enumerate(entries):
        if number == 0:
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if len(missing) > 1:
                raise PrepareError(
                    f"{path}: its first entry has no {', '.join(missing)}, so the file belongs to "
                    "another data set. See --help for the downloads"
                )
        yield place, entry


def lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, object) of a JSON Lines file. Places are lines, from 1. Raises PrepareError."""
    try:
        with regular_file(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise PrepareError(
                        f"{path}, line {number} is not JSON ({error}). Download the file again"
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path} cannot be read ({error}). Download it again") from error

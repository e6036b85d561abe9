"""The elements of a large JSON file one by one: memory for one element, not for the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .records import PrepareError

_CHUNK = 1 << 20
# No element of any release comes near; a broken file must not be read into memory to say so.
_LARGEST = 1 << 28
_SPACE = " \t\r\n"
# What follows a value; its first characters may look like a whole one.
_AFTER = (",", ":", "]", "}", *_SPACE)


def elements(path: Path, *keys: str) -> Iterator[tuple[str, Any]]:
    """(place, element) of the array, or (key, value) of the object, found at ``keys``.

    Places count from 0. Raises PrepareError: unreadable, not JSON, cut off, no such key.
    """
    try:
        # A byte order mark is no JSON, and some editors leave one.
        with path.open(encoding="utf-8-sig") as file:
            reader = _Reader(file, path)
            for key in keys:
                reader.enter(key)
            if reader.peek() == "[":
                for place in reader.array():
                    yield str(place), reader.value()
            elif reader.peek() == "{":
                for key in reader.object():
                    yield key, reader.value()
            else:
                raise reader.error("expected a list or an object here")
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path} cannot be read ({error}). Download it again") from error


def lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, object) of a JSON Lines file; places are lines, from 1. Raises PrepareError."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"line {number}", json.loads(line)
                except ValueError as error:
                    raise PrepareError(
                        f"{path}, line {number} is not JSON ({error}). Download the file again"
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path} cannot be read ({error}). Download it again") from error


class _Reader:
    """A window on the text of a JSON file that moves forward only."""

    def __init__(self, file: IO[str], path: Path):
        self._file = file
        self._path = path
        self._decode = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._at = 0
        self._before = 0  # characters already dropped from the buffer
        self._ended = False

    def error(self, message: str) -> PrepareError:
        return PrepareError(
            f"{self._path}, character {self._before + self._at}: {message}. "
            "The file may be cut off or another one: download it again"
        )

    def peek(self) -> str:
        """The next character that is no space, or "" at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in _SPACE:
                    return self._buffer[self._at]
                self._at += 1
            if not self._more():
                return ""

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._at > _LARGEST or not self._more():
                    raise self.error(f"not JSON ({error.msg})") from None
                continue
            length = end - self._at
            # A number may go on in the next chunk.
            if self._buffer[end : end + 1] in _AFTER or not self._more():
                self._at += length
                return value

    def skip(self) -> None:
        """Past the value that begins here, a list's elements one at a time."""
        if self.peek() == "[":
            for _ in self.array():
                self.value()
        elif self.peek() == "{":
            for _ in self.object():
                self.skip()
        else:
            self.value()

    def enter(self, key: str) -> None:
        """To the value of ``key`` of the object that begins here."""
        if self.peek() == "{":
            for found in self.object():
                if found == key:
                    return
                self.skip()
        raise self.error(f"there is no {key!r}")

    def array(self) -> Iterator[int]:
        """Stops before every element, which the caller reads."""
        self._take("[")
        place = 0
        while self.peek() != "]":
            if place:
                self._take(",")
            yield place
            place += 1
        self._take("]")

    def object(self) -> Iterator[str]:
        """Stops before the value of every key, which the caller reads."""
        self._take("{")
        first = True
        while self.peek() != "}":
            if not first:
                self._take(",")
            first = False
            key = self.value()
            self._take(":")
            yield key
        self._take("}")

    def _take(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            raise self.error(f"expected {expected!r}, found {found or 'the end of the file'!r}")
        self._at += 1

    def _more(self) -> bool:
        """Read on; twice as much as is held, so that a long value is not decoded too often."""
        if self._ended:
            return False
        text = self._file.read(max(_CHUNK, len(self._buffer) - self._at))
        self._ended = not text
        self._before += self._at
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        return bool(text)

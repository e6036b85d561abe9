"""Items of an official release: rows to write, entries left out, and problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa_exit.data.formats import SEPARATOR


class PrepareError(Exception):
    """An error for the user: file and entry, what is wrong, and the remedy."""


class MalformedError(Exception):
    """Raised by a reader about the current entry; becomes a Problem with file and id."""


# The errors that a reader raises about a malformed entry.
ENTRY_ERRORS = (
    *(MalformedError, KeyError, TypeError, ValueError, IndexError, AttributeError),
    RecursionError,
)


def reason(error: Exception) -> str:
    """Return what one of ``ENTRY_ERRORS`` says about the entry."""
    if isinstance(error, MalformedError):
        return str(error)
    if isinstance(error, KeyError):
        return f"the record has no {error}"
    return f"the record is malformed ({error})"


@dataclass(frozen=True)
class Record:
    """One row.

    Args:
        id: of the entry; rows of one entry (a question with several answers) share it.
        image_names: file names of the image in the releases; the first that exists is used.
        columns: the fields, None in place of the image.
    """

    id: str
    image_names: tuple[str, ...]
    columns: tuple[str | None, ...]

    @property
    def image_column(self) -> int:
        return self.columns.index(None)


@dataclass(frozen=True)
class LeftOut:
    """An entry without a row by the rules of the format; the data are fine."""

    id: str
    image_names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Problem:
    """An entry that cannot become a row: a missing or broken image, a malformed record."""

    file: str
    id: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}, {self.id}: {self.message}"


Item = Record | LeftOut | Problem


def items(
    source: Path,
    entries: Iterable[tuple[str, Any]],
    id_of: Callable[[str, Any], str],
    make: Callable[[str, Any], Iterable[Item]],
) -> Iterator[Item]:
    """Yield the items of all entries of ``source``. Memory: the ids.

    An entry that ``id_of`` or ``make`` cannot read, or with a duplicate id, becomes a Problem.

    Args:
        entries: (place in the file, entry).
        id_of: returns the id of an entry, from its place and itself.
        make: returns the items of an entry, from its id and itself.
    """
    seen = set()
    for place, entry in entries:
        where = f"entry {place}"
        try:
            where = id = id_of(place, entry)
            if id in seen:
                raise MalformedError("the id occurs twice")
            seen.add(id)
            made = list(make(id, entry))
            for item in made:
                if isinstance(item, Record):
                    _check_fields(item)
        except ENTRY_ERRORS as error:
            yield Problem(source.name, where, reason(error))
        else:
            yield from made


def _check_fields(record: Record) -> None:
    """Raise MalformedError for a field that would end its column, its row or the file's UTF-8."""
    for field in filter(None, (*record.columns, *record.image_names)):
        if any(mark in field for mark in "\t\n\r\0"):
            raise MalformedError(f"{field[:40]!r} holds a tab or a line break")
        try:
            field.encode()
        except UnicodeEncodeError:
            raise MalformedError(
                f"{ascii(field)[:40]} holds half of a surrogate pair, which is no character"
            ) from None


def clean(text: Any, name: str = "text") -> str:
    """Return ``text`` for a field: no tabs or line breaks, single spaces, ``&&`` as ``&``.

    Raises MalformedError if it is not text, or empty.
    """
    if not isinstance(text, str):
        raise MalformedError(f"{name} is {type(text).__name__}, not text")
    cleaned = " ".join(text.replace("\0", " ").split())
    while SEPARATOR in cleaned:
        cleaned = cleaned.replace(SEPARATOR, "&")
    if not cleaned:
        raise MalformedError(f"{name} is empty")
    return cleaned


def require_int(value: Any, name: str) -> int:
    """Return an id or index. Raises MalformedError if it is not an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedError(f"{name} is {value!r}, not an integer")
    return value


def coco_names(image_id: int) -> tuple[str, ...]:
    """Return the file names of a COCO image: in the 2014/2015 zips, then in the 2017 zips."""
    subsets = ("train2014", "val2014", "test2015")
    return (*(f"COCO_{subset}_{image_id:012d}.jpg" for subset in subsets), f"{image_id:012d}.jpg")

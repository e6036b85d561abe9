"""What a reader of an official release gives: rows to write, entries left out, and problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEPARATOR = "&&"


class PrepareError(Exception):
    """A refusal: which file and entry, what is wrong with it, and the remedy."""


class MalformedError(Exception):
    """Raised by a reader about the entry at hand; becomes a Problem with file and id."""


# What a reader raises about an entry that is not as published.
ENTRY_ERRORS = (MalformedError, KeyError, TypeError, ValueError, IndexError, AttributeError)


def reason(error: Exception) -> str:
    """What one of ``ENTRY_ERRORS`` says about the entry."""
    if isinstance(error, MalformedError):
        return str(error)
    if isinstance(error, KeyError):
        return f"the record has no {error}"
    return f"the record is malformed ({error})"


@dataclass(frozen=True)
class Record:
    """One row. ``columns`` are its fields, None in the image's place.

    ``image_names`` are the file names under which the releases keep the image; the first that is
    found is taken. Rows of one entry (a question with several answers) share ``id``.
    """

    id: str
    image_names: tuple[str, ...]
    columns: tuple[str | None, ...]

    @property
    def image_column(self) -> int:
        return self.columns.index(None)


@dataclass(frozen=True)
class LeftOut:
    """An entry that makes no row by the rules of the format, which is no fault of the data."""

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
    """The items of all entries of ``source``, given as (place in the file, entry).

    ``id_of`` names an entry by its place and itself, ``make`` turns an id and its entry into
    items. An entry that either cannot read, or whose id came before, gives a Problem. Memory: the
    ids.
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
        except ENTRY_ERRORS as error:
            yield Problem(source.name, where, reason(error))
        else:
            yield from made


def clean(text: Any, name: str = "text") -> str:
    """``text`` fit for a field: no tabs or line breaks, single spaces, ``&&`` as ``&``.

    Raises MalformedError when it is no text or empty.
    """
    if not isinstance(text, str):
        raise MalformedError(f"{name} is {type(text).__name__}, not text")
    cleaned = " ".join(text.replace("\0", " ").split())
    while SEPARATOR in cleaned:
        cleaned = cleaned.replace(SEPARATOR, "&")
    if not cleaned:
        raise MalformedError(f"{name} is empty")
    return cleaned


def whole(value: Any, name: str) -> int:
    """An id or index that has to be a whole number. Raises MalformedError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedError(f"{name} is {value!r}, not a whole number")
    return value


def coco_names(image_id: int) -> tuple[str, ...]:
    """File names of a COCO image: of the 2014/2015 zips, then of the 2017 zips."""
    folders = ("train2014", "val2014", "test2015")
    return (*(f"COCO_{of}_{image_id:012d}.jpg" for of in folders), f"{image_id:012d}.jpg")

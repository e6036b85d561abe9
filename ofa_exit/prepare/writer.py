"""Rows to a TSV file that is whole or not there: a killed run leaves FILE.partial and resumes.

Beside FILE.partial lies FILE.partial.json with the inputs it is made from. A run over the same
inputs reads the partial file again, compares each row with the record that it should hold, keeps
those that match, cuts the rest off (a torn last row, blocks lost with the power) and goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from ofa_exit.data.index_file import Stamp, write_index

from .images import BrokenImageError, Files, encode_image, encoded_length
from .manifest import read_json, write_json
from .problems import Problems
from .records import Item, PrepareError, Problem, Record


@dataclass
class Written:
    """What went into a file; ``kept`` of its ``rows`` came from an earlier run.

    ``offsets``: where each row begins, and the end of the last one.
    """

    kept: int = 0
    offsets: array = field(default_factory=lambda: array("q", [0]))
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def size(self) -> int:
        return self.offsets[-1]

    def add(self, row: bytes) -> None:
        self.offsets.append(self.size + len(row))
        self.digest.update(row)


def partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _inputs_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial.json")


def partial_inputs(path: Path) -> dict[str, Any] | None:
    """What the partial file of ``path`` is made from; None if there is none."""
    return read_json(_inputs_path(path)) if partial_path(path).exists() else None


def resumable(path: Path, inputs: dict[str, Any]) -> bool | None:
    """Whether a partial file of ``path`` was made from ``inputs``; None if there is none."""
    if not partial_path(path).exists():
        return None
    return read_json(_inputs_path(path)) == inputs


def write_rows(
    path: Path,
    inputs: dict[str, Any],
    items: Iterable[Item],
    files: Files,
    problems: Problems,
    *,
    skip_broken: bool,
    advance: Callable[[], object] = lambda: None,
) -> Written:
    """Write or go on with ``path``'s partial file; ``publish`` puts it in place.

    Records without an image are passed over: whoever calls has seen them. Broken images go to
    ``problems``. Without ``skip_broken`` nothing is written after the first of them, and the rest
    is looked through for others, so that one run tells of all. ``advance`` is called after each
    row. Memory: a few images, and a number a row.
    """
    written = Written()
    whole = True
    with _locked(path) as file:
        if not resumable(path, inputs):
            file.truncate(0)
            write_json(_inputs_path(path), inputs)
        records = _with_images(items, files)
        pending = _keep(file, records, written, problems, advance)
        for record, image in _chain(pending, records):
            try:
                encoded = encode_image(image)
            except BrokenImageError as error:
                problem = Problem(image.name, record.id, str(error))
                problems.add(problem)
                if whole and not skip_broken:
                    whole = False
                    tqdm.write(f"{problem}\nLooking through the rest for others", sys.stderr)
                continue
            if whole:
                row = _row(record, encoded)
                file.write(row)
                written.add(row)
            advance()
        file.flush()
        os.fsync(file.fileno())
    return written


def publish(path: Path, written: Written) -> None:
    """Put the finished partial file in place of ``path``, its index first."""
    with suppress(OSError):  # who reads the file makes one where there is none
        write_index(path, Stamp.of(partial_path(path).stat()), written.offsets)
    os.replace(partial_path(path), path)
    _inputs_path(path).unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The partial file, for one process alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_path(path).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PrepareError(
                f"{partial_path(path)} is being written by another run. Wait for it, or end it"
            ) from None
        yield file


def _with_images(items: Iterable[Item], files: Files) -> Iterator[tuple[Record, Path]]:
    for item in items:
        if isinstance(item, Record):
            image = files.image(item.image_names)
            if image is not None:
                yield item, image


def _chain(
    first: tuple[Record, Path] | None, rest: Iterator[tuple[Record, Path]]
) -> Iterator[tuple[Record, Path]]:
    if first is not None:
        yield first
    yield from rest


def _row(record: Record, encoded: str) -> bytes:
    fields = [encoded if column is None else column for column in record.columns]
    return ("\t".join(fields) + "\n").encode("utf-8")


def _keep(
    file: BinaryIO,
    records: Iterator[tuple[Record, Path]],
    written: Written,
    problems: Problems,
    advance: Callable[[], object],
) -> tuple[Record, Path] | None:
    """Account for the rows that are there and right; cut the file after them.

    Returns the record that was taken from ``records`` and has no row yet.
    """
    file.seek(0)
    pending = None
    for row in file:
        for record, image in records:
            if _holds(row, record, image):
                break
            # An image broken then and now has no row.
            broken = _breakage(image)
            if broken is not None:
                problems.add(Problem(image.name, record.id, broken))
                continue
            pending = record, image
            break
        else:
            break
        if pending is not None:
            break
        written.add(row)
        written.kept += 1
        advance()
    file.truncate(written.size)
    file.seek(0, os.SEEK_END)
    return pending


def _holds(row: bytes, record: Record, image: Path) -> bool:
    """Whether ``row`` is the whole row of ``record``, by its text and its image's length."""
    at = record.image_column
    before = "".join(f"{column}\t" for column in record.columns[:at]).encode("utf-8")
    after = "".join(f"\t{column}" for column in record.columns[at + 1 :]).encode("utf-8") + b"\n"
    length = encoded_length(image)
    return (
        len(row) == len(before) + length + len(after)
        and row.startswith(before)
        and row.endswith(after)
        # A block that never reached the disk reads as zeros.
        and b"\0" not in row
    )


def _breakage(image: Path) -> str | None:
    try:
        encode_image(image)
    except BrokenImageError as error:
        return str(error)
    return None

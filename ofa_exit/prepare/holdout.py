"""A validation split, separated into rows to train on and held-out rows: ``ofa-exit holdout``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ofa_exit.data.answers import join_answers, parse_answers
from ofa_exit.data.files import atomic_write, write_bytes
from ofa_exit.data.formats import SEPARATOR
from ofa_exit.data.tsv import TsvError, TsvFile
from ofa_exit.prepare.answers import ANNOTATORS, training_answers
from ofa_exit.regular_files import regular_file

# Columns of prepared files. The image id is in the same column of all of them.
_IMAGE_ID = "1"
_CAPTION, _ANSWERS = 2, 3
_CANDIDATES, _TRUE, _RELEVANCE = 4, 5, 6


def caption_rows(fields: list[str], candidates: frozenset[str] | None) -> Iterator[list[str]]:
    """Yield one row per caption."""
    for caption in fields[_CAPTION].split(SEPARATOR):
        yield [*fields[:_CAPTION], caption.strip(), *fields[_CAPTION + 1 :]]


def question_rows(fields: list[str], candidates: frozenset[str] | None) -> Iterator[list[str]]:
    """Yield one row per distinct answer of the ten annotators, weighted as in training files.

    GQA's single answer is kept. Raises ValueError for malformed answers.
    """
    pairs = parse_answers(fields[_ANSWERS])
    if not pairs:
        raise ValueError("no answers: this is a test split")
    if len(pairs) == ANNOTATORS:
        pairs = training_answers([answer for _, answer in pairs], candidates)
    for pair in pairs:
        yield [*fields[:_ANSWERS], join_answers([pair]), *fields[_ANSWERS + 1 :]]


def dialogue_rows(fields: list[str], candidates: frozenset[str] | None) -> Iterator[list[str]]:
    """Yield the row with the true answer alone. Raises ValueError if it is unknown."""
    answers, number = fields[_CANDIDATES].split(SEPARATOR), fields[_TRUE]
    if not (number.isdecimal() and int(number) < len(answers)):
        raise ValueError(f"gt_index {number!r} is none of {len(answers)} candidates")
    row = list(fields)
    row[_CANDIDATES], row[_TRUE], row[_RELEVANCE] = answers[int(number)], "0", ""
    yield row


# Kind of data → number of columns of its prepared files, and the function from row to rows.
Rows = Callable[[list[str], "frozenset[str] | None"], Iterator[list[str]]]
KINDS: dict[str, tuple[int, Rows]] = {
    "caption": (5, caption_rows),
    "question": (6, question_rows),
    "dialogue": (8, dialogue_rows),
}


def training_images(images: Sequence[str], share: float) -> set[str]:
    """Return ``share`` of the distinct ``images``, at least one, by the SHA-256 of their names.

    Raises ValueError for a share outside (0, 1), and for fewer than two images.
    """
    if not 0 < share < 1:
        raise ValueError(f"--share {share}: give a number between 0 and 1, as in 0.8")
    distinct = sorted(set(images), key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(distinct) < 2:
        raise ValueError("all rows have the same image: there is nothing to hold out")
    return set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])


def part(
    kind: str, source: Path, out: Path, share: float = 0.8, candidates: Path | None = None
) -> str:
    """Write OUT/train.tsv, then OUT/valid.tsv, each atomically. Return a summary.

    Args:
        share: part of the images to train on.
        candidates: answers.txt, to which training answers are restricted; it is copied to OUT.

    Raises TsvError or ValueError, with file, line and remedy.
    """
    width, training_rows = KINDS[kind]
    file = TsvFile(source, _IMAGE_ID, ("image_id",))
    if file.width != width:
        raise TsvError(
            source,
            message=f"{file.width} columns, but prepared files of the kind {kind} have {width}",
            remedy="Give the valid.tsv that ofa-exit prepare wrote, and its kind",
        )
    known = None
    if candidates is not None:
        known = frozenset(regular_file(candidates).read_text(encoding="utf-8").splitlines())
        write_bytes(out / candidates.name, regular_file(candidates).read_bytes())
    images = [file.row(row)["image_id"] for row in _progress(range(len(file)), source.name)]
    try:
        trained = training_images(images, share)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    rows, left_out = 0, 0
    with atomic_write(out / "train.tsv") as stream:
        kept = [row for row, image in enumerate(images) if image in trained]
        for index in _progress(kept, "train.tsv"):
            try:
                made = list(training_rows(file.fields(index), known))
            except TsvError:
                raise
            except ValueError as error:
                remedy = f"Give a split with answers, of the kind {kind}"
                raise file.error(index, None, str(error), remedy) from None
            rows, left_out = rows + len(made), left_out + (not made)
            stream.writelines(_line(row) for row in made)
    held_out = [row for row, image in enumerate(images) if image not in trained]
    with atomic_write(out / "valid.tsv") as stream:
        stream.writelines(_line(file.fields(row)) for row in _progress(held_out, "valid.tsv"))
    summary = f"{out}: train.tsv {rows} rows of {len(trained)} images, "
    summary += f"valid.tsv {len(held_out)} rows of {len(set(images)) - len(trained)}"
    if left_out:
        summary += f"; left out: {left_out} questions without an answer to train on"
    return summary


def _progress(rows: Sequence[int], name: str) -> Iterable[int]:
    """Show a progress bar over the rows on a terminal."""
    return tqdm(rows, name, unit="row", disable=None)


def _line(fields: list[str]) -> bytes:
    return ("\t".join(fields) + "\n").encode("utf-8")

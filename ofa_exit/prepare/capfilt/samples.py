"""Sampled captions in the output of fairseq-generate, row by row."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ofa_exit.data.text import strip_punctuation
from ofa_exit.regular_files import regular_file

LISTED_LINES = 5
Paths = Sequence[str | os.PathLike[str]]


def read_samples(paths: Paths) -> Iterator[tuple[int, list[str]]]:
    """Yield each row of the data, from 0, with its samples, in the order of the files.

    Args:
        paths: generate-SPLIT.txt of fairseq-generate --sampling --nbest N; several files if shards
            or processes shared the work. Only one row is in memory at a time.
    Raises:
        ValueError: a line D-ROW is torn; names file and line.
    """
    for path in paths:
        for row, lines in groupby(_samples(path), key=lambda sample: sample[0]):
            yield row, [text for _, text in lines]


def _samples(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yield row and text of every line D-ROW, SCORE, TEXT."""
    with open(regular_file(path), encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.startswith("D-"):
                continue
            row, *fields = line[2:].rstrip("\r\n").split("\t", 2)
            if not row.isdecimal() or len(fields) != 2:
                raise ValueError(f"{path}, line {number}: not D-ROW, score and text: {line[:60]!r}")
            yield int(row), fields[1]


def survey(paths: Paths, rows: int, allow_missing: bool = False) -> tuple[int, int]:
    """Read everything once, so that errors show before any image is ranked.

    Args:
        rows: number of rows of the TSV that was generated for.
    Returns:
        The numbers of rows generated, and of samples per row.
    Raises:
        ValueError: a row was generated twice or is not in the TSV; rows have different numbers of
            samples; a row has none, unless ``allow_missing``.
    """
    seen = bytearray(rows)
    sizes: Counter[int] = Counter()
    for row, samples in read_samples(paths):
        if row >= rows:
            raise ValueError(
                f"row {row}, from 0, was generated, but the TSV has {rows} rows: give the file "
                "that was generated for"
            )
        if seen[row]:
            raise ValueError(
                f"row {row} was generated twice: give each file of one generation once"
            )
        seen[row] = 1
        sizes[len(samples)] += 1
    if not sizes:
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names}: no line D-…, so nothing was generated, or it ran with --quiet")
    if len(sizes) > 1:
        counts = ", ".join(f"{count} rows with {size}" for size, count in sorted(sizes.items()))
        raise ValueError(
            f"rows have different numbers of samples ({counts}): did the generation finish? Its "
            "last line starts with Generate"
        )
    missing = [row for row, is_generated in enumerate(seen) if not is_generated]
    if missing and not allow_missing:
        shown = ", ".join(str(row + 1) for row in missing[:LISTED_LINES])
        raise ValueError(
            f"{len(missing)} of {rows} rows have no samples (lines {shown}"
            f"{', …' * (len(missing) > LISTED_LINES)}). Did the generation finish, and are all "
            "shards given? --allow-missing leaves the rows out"
        )
    (per_row,) = sizes
    return sizes[per_row], per_row


@dataclass(frozen=True)
class Distinct:
    """The captions to rank, and the numbers of samples left out."""

    captions: list[str]
    empty: int
    duplicates: int


def distinct(samples: Iterable[str]) -> Distinct:
    """Drop empty samples and repetitions; case and punctuation make no difference."""
    kept: dict[str, str] = {}
    empty = duplicates = 0
    for sample in samples:
        words = " ".join(sample.split())
        key = strip_punctuation(words).lower()
        if not key:
            empty += 1
        elif key in kept:
            duplicates += 1
        else:
            kept[key] = words
    return Distinct(list(kept.values()), empty, duplicates)

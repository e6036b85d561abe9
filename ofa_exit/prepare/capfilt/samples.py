"""Sampled captions of fairseq-generate, row by row."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ofa_exit.data.text import strip_punctuation
from ofa_exit.evaluation.metrics.submission import hypotheses, nothing_generated

_SHOWN = 5
Paths = Sequence[str | os.PathLike[str]]


def read_samples(paths: Paths) -> Iterator[tuple[int, list[str]]]:
    """Row of the data, from 0, and its samples, in the order of the files and their lines.

    paths: generate-SPLIT.txt of fairseq-generate --sampling --nbest N; several where shards or
    processes shared the work. Of its lines D- is read: H- as words. One row at a time in memory.
    """
    for path in paths:
        for row, lines in groupby(hypotheses(path), key=lambda line: line[1]):
            yield row, [text for _, _, text in lines]


@dataclass(frozen=True)
class Survey:
    """What the files of a generation hold."""

    rows: int
    samples: int
    most: int  # samples of a row


def look_over(paths: Paths, rows: int, allow_missing: bool = False) -> Survey:
    """Reads all once, so that what is wrong shows before any image is ranked.

    rows: of the TSV that was generated for. Raises ValueError: rows that come twice or that the
    TSV lacks, rows without all of their samples, and, if not ``allow_missing``, without any.
    """
    seen = bytearray(rows)
    sizes: Counter[int] = Counter()
    for row, samples in read_samples(paths):
        if row >= rows:
            raise ValueError(
                f"row {row}, from 0, was generated, and the TSV has {rows}: it was another file"
            )
        if seen[row]:
            raise ValueError(
                f"row {row} was generated twice: give each file of one generation once"
            )
        seen[row] = 1
        sizes[len(samples)] += 1
    if not sizes:
        raise nothing_generated(paths)
    if len(sizes) > 1:
        told = ", ".join(f"{count} rows with {size}" for size, count in sorted(sizes.items()))
        raise ValueError(
            f"rows have different numbers of samples ({told}): did the generation end? Its last "
            "line says Generate …"
        )
    missing = [row for row, there in enumerate(seen) if not there]
    if missing and not allow_missing:
        shown = ", ".join(str(row + 1) for row in missing[:_SHOWN])
        raise ValueError(
            f"{len(missing)} of {rows} rows have no samples (lines {shown}"
            f"{', …' * (len(missing) > _SHOWN)}). Did the generation end, and are all shards here? "
            "--allow-missing leaves them out"
        )
    (most,) = sizes
    return Survey(sum(sizes.values()), most * sum(sizes.values()), most)


@dataclass(frozen=True)
class Distinct:
    """The captions worth ranking, and how many samples were none."""

    captions: list[str]
    empty: int
    duplicates: int


def distinct(samples: Iterable[str]) -> Distinct:
    """Samples with words that no other before them has; case and punctuation make no difference."""
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

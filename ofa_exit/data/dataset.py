"""A dataset over examples that refuses, or leaves out and counts, the rows that make none."""

import logging
from typing import Protocol

import torch
from torch.utils.data import Dataset

from ofa_exit.data.collate import collate
from ofa_exit.data.example import Example
from ofa_exit.data.tsv import TsvError, TsvFile

logger = logging.getLogger(__name__)

_SHOWN = 5


class Examples(Protocol):
    """A file's examples by row; ``lengths`` estimates source and target in tokens."""

    file: TsvFile
    lengths: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class RowMarks:
    """A set of row numbers that grows in any process and is seen by all: one shared byte a row."""

    def __init__(self, rows: int):
        self._marks = torch.zeros(rows, dtype=torch.uint8).share_memory_()

    def add(self, row: int) -> bool:
        """Mark ``row``; whether it is the first one marked."""
        first = not self._marks.any()
        self._marks[row] = 1
        return first

    def __len__(self) -> int:
        return int(self._marks.count_nonzero())

    def first(self, count: int) -> list[int]:
        return self._marks.nonzero().flatten()[:count].tolist()


class OFADataset(Dataset):
    """Examples with the batch they make.

    A row that makes no example raises its TsvError; with ``skip_bad_rows`` it gives None, is left
    out of its batch and counted. ``summary`` reports in the main process what the workers met;
    each row counts once, however often it was read.
    """

    def __init__(self, examples: Examples, pad: int, image_size: int, skip_bad_rows: bool = False):
        self.examples = examples
        self.pad = pad
        self.image_size = image_size
        self.skip_bad_rows = skip_bad_rows
        self._bad = RowMarks(len(examples))
        self._unknown = RowMarks(len(examples))

    @property
    def lengths(self) -> tuple[int, int]:
        """Source and target tokens of a row, estimated without reading it."""
        return self.examples.lengths

    @property
    def bad_rows(self) -> int:
        return len(self._bad)

    @property
    def rows_with_unknown_words(self) -> int:
        return len(self._unknown)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example | None:
        try:
            example = self.examples[index]
        except TsvError as error:
            # An error about the file as a whole is no bad row.
            if not self.skip_bad_rows or error.line is None:
                raise
            self._bad.add(index)
            return None
        if example.unknown and self._unknown.add(index):
            logger.warning(
                "%s, line %d: %r is not in the dictionary and is read as unknown; "
                "further ones are counted",
                self.examples.file.path,
                index + 1,
                example.unknown[0],
            )
        return example

    def collater(self, examples: list[Example | None]) -> dict:
        return collate(examples, self.pad, self.image_size)

    def summary(self) -> list[str]:
        """Lines for a log on what was wrong with the rows read so far; none when all was well."""
        path, rows = self.examples.file.path, len(self)
        lines = []
        if self.bad_rows:
            lines.append(f"{path}: {self.bad_rows} of {rows} rows were skipped, among them")
            lines += [f"  {self._reason(row)}" for row in self._bad.first(_SHOWN)]
        if self.rows_with_unknown_words:
            shown = ", ".join(str(row + 1) for row in self._unknown.first(_SHOWN))
            lines.append(
                f"{path}: {self.rows_with_unknown_words} of {rows} rows hold words that the "
                f"dictionary lacks (lines {shown}{', …' * (self.rows_with_unknown_words > _SHOWN)})"
            )
        return lines

    def _reason(self, index: int) -> str:
        try:
            self.examples[index]
        except TsvError as error:
            return str(error)
        return f"line {index + 1}: readable now"

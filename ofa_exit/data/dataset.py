"""A dataset over examples that rejects, or skips and counts, the rows that make none."""

import logging
import random

import torch
from torch.utils.data import Dataset

from ofa_exit.data.collate import collate
from ofa_exit.data.example import Example
from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.tsv import TsvError

logger = logging.getLogger(__name__)

_ROWS_LISTED = 5


class RowMarks:
    """A set of row numbers that all processes share: one byte of shared memory per row."""

    def __init__(self, rows: int):
        self._marks = torch.zeros(rows, dtype=torch.uint8).share_memory_()

    def add(self, row: int) -> bool:
        """Mark ``row``. Return whether it is the first one marked."""
        first = not self._marks.any()
        self._marks[row] = 1
        return first

    def __len__(self) -> int:
        return int(self._marks.count_nonzero())

    def __contains__(self, row: int) -> bool:
        return bool(self._marks[row])

    def first(self, count: int) -> list[int]:
        return self._marks.nonzero().flatten()[:count].tolist()


class OFADataset(Dataset):
    """Examples and their batches.

    A row that makes no example raises its TsvError. With ``skip_bad_rows`` another row of the file
    takes its place in training, so that every batch is full and every update has data. Elsewhere
    its batch lacks it. ``summary`` reports in the main process what the workers found. Each row
    counts once, however often it was read.

    Raises:
        TsvError: with ``skip_bad_rows``, none of the rows makes an example.
    """

    def __init__(
        self, examples: RowExamples, pad: int, image_size: int, skip_bad_rows: bool = False
    ):
        self.examples = examples
        self.pad = pad
        self.image_size = image_size
        self.skip_bad_rows = skip_bad_rows
        self.rows_to_read = len(examples)  # fewer for a process that reads a shard
        self._bad = RowMarks(len(examples))
        self._unknown = RowMarks(len(examples))

    @property
    def lengths(self) -> tuple[int, int]:
        """Return the source and target tokens of a row, estimated without reading it."""
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
        example = self._read(index)
        if example is None and self.examples.train:
            return self.substitute(index)
        return example

    def substitute(self, bad: int) -> Example | None:
        """Return the example of another row, drawn by the number of the bad one.

        Neighbours are not taken: all rows of a broken image may be bad, and one good row would
        stand for all of them.
        """
        draw, rows = random.Random(bad), len(self)
        for _ in range(rows):
            row = draw.randrange(rows)
            if row not in self._bad and (example := self._read(row)) is not None:
                return example
        # Nearly all rows are bad. Reading all that are left finds a good one, or raises.
        left = (row for row in range(rows) if row not in self._bad)
        return next((example for row in left if (example := self._read(row)) is not None), None)

    def _read(self, index: int) -> Example | None:
        try:
            example = self.examples[index]
        except TsvError as error:
            if error.line is None:  # about the whole file
                raise
            if not self.skip_bad_rows:
                raise TsvError(
                    *(error.path, error.line, error.field, error.message),
                    f"{error.remedy}, or pass --skip-bad-rows. ofa-exit check lists all such rows",
                ) from None
            self._bad.add(index)
            if len(self._bad) >= self.rows_to_read:
                raise TsvError(
                    self.examples.file.path,
                    message=f"none of the {self.rows_to_read} rows can be used. The last one read: "
                    f"{error}",
                ) from error
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
        """Return log lines on the bad rows read so far. Without bad rows there are none."""
        path, rows = self.examples.file.path, len(self)
        lines = []
        if self.bad_rows:
            lines.append(f"{path}: {self.bad_rows} of {rows} rows were skipped, among them")
            lines += [f"  {self._reason(row)}" for row in self._bad.first(_ROWS_LISTED)]
        if self.rows_with_unknown_words:
            shown = ", ".join(str(row + 1) for row in self._unknown.first(_ROWS_LISTED))
            more = ", …" * (self.rows_with_unknown_words > _ROWS_LISTED)
            lines.append(
                f"{path}: {self.rows_with_unknown_words} of {rows} rows hold words that the "
                f"dictionary lacks (lines {shown}{more})"
            )
        return lines

    def _reason(self, index: int) -> str:
        try:
            self.examples[index]
        except TsvError as error:
            return str(error)
        return f"line {index + 1}: readable now"

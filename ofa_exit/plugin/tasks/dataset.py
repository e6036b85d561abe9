"""The rows of a file as a fairseq dataset."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset

from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.example import Example
from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError


@contextlib.contextmanager
def _row_errors() -> Iterator[None]:
    try:
        yield
    except TsvError as error:
        raise UsageError(str(error)) from error


class RowDataset(FairseqDataset):
    """``rows`` with fairseq's interface. Every batch names the ``subset`` it comes from.

    Args:
        shuffle: change the order each epoch, for training.
        validates: for validation, in which a batch may not be empty: the trainer would evaluate the
            first training batch in its place, and log that.
    """

    def __init__(
        self, rows: OFADataset, subset: str, shuffle: bool, validates: bool = False
    ) -> None:
        super().__init__()
        self.rows = rows
        self.subset = subset
        self.shuffle = shuffle
        self.validates = validates

    def __getitem__(self, index: int) -> Example | None:
        """Return an example, or None if the row is skipped. A bad row raises UsageError."""
        with _row_errors():
            return self.rows[int(index)]

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Give training images the random views of an epoch."""
        if self.rows.examples.augment is not None:
            self.rows.examples.augment.set_epoch(epoch)

    def collater(self, samples: list[Example | None]) -> dict[str, Any]:
        """Return the batch, or {} if all its rows are skipped, which fairseq-generate ignores.

        In validation, a batch of another row with ``is_skipped``, which counts as nothing.
        """
        batch = self.rows.collater(samples)
        if samples and not batch and self.validates:
            with _row_errors():
                batch = self.rows.collater([self.rows.substitute(0)])
            batch["is_skipped"] = True
        if batch:
            batch["subset"] = self.subset
        return batch

    def size(self, index: int) -> tuple[int, int]:
        return self.rows.lengths

    def num_tokens(self, index: int) -> int:
        return max(self.rows.lengths)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return np.full(len(indices), max(self.rows.lengths))

    def ordered_indices(self) -> np.ndarray:
        """Return the order of an epoch, for which fairseq has seeded numpy.

        Rows that share an image stay together.
        """
        if not self.shuffle:
            return np.arange(len(self))
        if self.rows.examples.groups is None:
            return np.random.permutation(len(self))
        images, image_of_row = np.unique(self.rows.examples.groups, return_inverse=True)
        return np.argsort(np.random.permutation(len(images))[image_of_row], kind="stable")

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return not self.shuffle

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: Any
    ) -> tuple[np.ndarray, list[int]]:
        """Keep all rows: a row's size is only known after reading it.

        Pass the model's limits on instead, so that a longer row raises an error with its line.
        """
        if isinstance(max_sizes, Sequence):
            examples: Any = self.rows.examples
            examples.max_source_positions, examples.max_target_positions = max_sizes
        return indices, []

"""The rows of a file as a fairseq dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset

from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.example import Example
from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError


class RowDataset(FairseqDataset):
    """``rows`` with fairseq's interface. Every batch names the ``subset`` it comes from.

    Args:
        shuffle: change the order each epoch, for training.
    """

    def __init__(self, rows: OFADataset, subset: str, shuffle: bool) -> None:
        super().__init__()
        self.rows = rows
        self.subset = subset
        self.shuffle = shuffle

    def __getitem__(self, index: int) -> Example | None:
        """Return an example, or None if the row is skipped. A bad row raises UsageError."""
        try:
            return self.rows[int(index)]
        except TsvError as error:
            raise UsageError(str(error)) from error

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Give training images the random views of an epoch."""
        if self.rows.examples.augment is not None:
            self.rows.examples.augment.set_epoch(epoch)

    def collater(self, samples: list[Example | None]) -> dict[str, Any]:
        """Return the batch, or {} if all its rows are skipped; fairseq ignores an empty batch."""
        batch = self.rows.collater(samples)
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
        """Return the order of an epoch, by which fairseq has seeded numpy."""
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))

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

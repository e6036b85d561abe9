"""The rows of a file as the dataset that fairseq batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset

from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.example import Example


class RowDataset(FairseqDataset):
    """``rows`` under fairseq's interface; every batch knows the ``subset`` it comes from.

    shuffle: rows meet in other batches each epoch (training); otherwise they keep their order.
    """

    def __init__(self, rows: OFADataset, subset: str, shuffle: bool) -> None:
        super().__init__()
        self.rows = rows
        self.subset = subset
        self.shuffle = shuffle

    def __getitem__(self, index: int) -> Example | None:
        return self.rows[int(index)]

    def __len__(self) -> int:
        return len(self.rows)

    def collater(self, samples: list[Example | None]) -> dict[str, Any]:
        """The batch; empty when it holds no good row, which fairseq passes over."""
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
        """fairseq seeds numpy by the epoch before it asks."""
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return not self.shuffle

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: Any
    ) -> tuple[np.ndarray, list[int]]:
        """Drops nothing: sizes are known only when a row is read.

        The model's limits are handed to the rows, where a longer one is an error with its line.
        """
        if isinstance(max_sizes, Sequence):
            examples: Any = self.rows.examples
            examples.max_source_positions, examples.max_target_positions = max_sizes
        return indices, []

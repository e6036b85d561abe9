"""The rows that are still computed: selection, and compaction when sentences leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.runtime.rows import from_host

RowSlices = Optional[Sequence[slice]]


class ActiveRows:
    """Which of S sentences are still computed. Each has ``group`` rows side by side.

    Attributes:
        sentences: places of the active sentences among all S.
        index: Long [R], their rows among all N = S·group rows; None while all are active.
        sentence_index: ``sentences`` on the device; None while all are active.
        row_slices, sentence_slices: rows and sentences as slices, where K/V are read in place;
            None where they are copied together (or all are active).
        memory: the gate's tensors per active row, compacted with them.
    """

    def __init__(self, sentences: int, group: int, device: torch.device) -> None:
        self.group = group
        self.device = device
        self.sentences = list(range(sentences))
        self.index: Optional[Tensor] = None
        self.sentence_index: Optional[Tensor] = None
        self.row_slices: RowSlices = None
        self.sentence_slices: RowSlices = None
        self.memory: dict[str, Tensor] = {}

    def select(self, values: Tensor) -> Tensor:
        """Return the active rows [R, …] of values [N, …]."""
        return values if self.index is None else values[self.index]

    def places(self) -> list[int]:
        """Return the places of the R active rows among all N."""
        return [self.group * s + i for s in self.sentences for i in range(self.group)]

    def rows(self, positions: list[int]) -> Tensor:
        """Return the rows, among the active ones, of sentences given by their place in
        ``sentences``: Long [group·positions]."""
        group = range(self.group)
        return from_host([self.group * p + i for p in positions for i in group], self.device)

    def keep(self, positions: list[int], slices: Optional[list[slice]]) -> Tensor:
        """Keep only some of the active sentences.

        Args:
            positions: which of ``sentences`` stay.
            slices: them among all S, if their K/V are to be read in place.

        Returns:
            Long [R]: the rows that stay, among those active until now.
        """
        active = len(self.sentences) * self.group
        for name, tensor in self.memory.items():
            if len(tensor) != active:
                raise ValueError(
                    f"seen.memory[{name!r}] has {len(tensor)} rows, but {active} are active: its "
                    "first dimension must be the rows"
                )
        rows = self.rows(positions)
        self.index = rows if self.index is None else self.index[rows]
        self.sentences = [self.sentences[position] for position in positions]
        self.sentence_index = from_host(self.sentences, self.device)
        self.sentence_slices, self.row_slices = slices, None
        if slices is not None:
            self.row_slices = [slice(self.group * s.start, self.group * s.stop) for s in slices]
        self.memory = {name: tensor[rows] for name, tensor in self.memory.items()}
        return rows

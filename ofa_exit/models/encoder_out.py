"""The encoder's output, and how it follows beam search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.runtime.rows import surviving_sentences
from ofa_exit.runtime.trace import ExitTrace


@dataclass
class EncoderOut:
    """The encoder's output for S sentences. Nothing is repeated for beams.

    Attributes:
        states: [S, T, C] after the final norm, image tokens first.
        padding_mask: Bool [S, T].
        positions: [1, T, C], the same for every sentence of a batch.
        sentences: Long [S], number of each sentence in the batch that was encoded.
        step_limit: Long [S], N of MuE Eq. 11.
        group: hypotheses per sentence, known after the first ``reordered``.
    """

    states: Tensor
    padding_mask: Tensor
    positions: Tensor
    sentences: Tensor
    step_limit: Optional[Tensor] = None
    group: Optional[int] = None
    trace: Optional[ExitTrace] = None

    def limits(self, hypotheses: int, length: int) -> Tensor:
        """Return the step limit of each hypothesis, Long [N, 1].

        Without a limit it is ``length``, that of the sequence.
        """
        if self.step_limit is None:
            return torch.full((hypotheses, 1), length, device=self.states.device)
        return self.step_limit.repeat_interleave(self.group or 1).unsqueeze(1)

    def reordered(self, new_order: Tensor) -> EncoderOut:
        """Keep the sentences that ``new_order`` [rows] still has hypotheses for.

        Contract of fairseq's beam search: the first call expands every sentence to its hypotheses,
        row i·group + j for sentence i. Every later call permutes hypotheses within their sentence
        and drops those of finished sentences. If the count is equal, no sentence has finished.
        """
        sentences = self.states.size(0)
        if self.group is None:
            if new_order.numel() % sentences:
                raise ValueError(
                    f"{new_order.numel()} hypotheses cannot be shared by {sentences} sentences"
                )
            return replace(self, group=new_order.numel() // sentences)
        if new_order.numel() == sentences * self.group:
            return self
        surviving = surviving_sentences(new_order, self.group)
        limit = self.step_limit
        return replace(
            self,
            states=self.states.index_select(0, surviving),
            padding_mask=self.padding_mask.index_select(0, surviving),
            sentences=self.sentences.index_select(0, surviving),
            step_limit=None if limit is None else limit.index_select(0, surviving),
        )

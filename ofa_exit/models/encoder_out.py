"""What the decoder is given of the encoder, and how it follows beam search."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.runtime.rows import surviving_sentences
from ofa_exit.runtime.trace import ExitTrace


@dataclass
class EncoderOut:
    """What the decoder needs of S sentences; nothing is repeated for beams.

    states: [S, T, C] after the final norm, image tokens first; padding_mask: Bool [S, T].
    positions: [1, T, C], the same for every sentence of a batch.
    sentences: Long [S], place of each sentence in the batch that was encoded.
    step_limit: Long [S], N of MuE Eq. 11.
    group: hypotheses a sentence, known after the first ``reordered``.
    layer_states: with ``return_layers``, the input of layer 1 and the output of every layer.
    """

    states: Tensor
    padding_mask: Tensor
    positions: Tensor
    sentences: Tensor
    step_limit: Optional[Tensor] = None
    group: Optional[int] = None
    trace: Optional[ExitTrace] = None
    layer_states: list[Tensor] = field(default_factory=list)

    def limits(self, hypotheses: int, length: int) -> Tensor:
        """Step limit of each, Long [N, 1]; ``length``, the sequence's own, where none was given."""
        if self.step_limit is None:
            return torch.full((hypotheses, 1), length, device=self.states.device)
        return self.step_limit.repeat_interleave(self.group or 1).unsqueeze(1)

    def reordered(self, new_order: Tensor) -> EncoderOut:
        """Keeps the sentences that ``new_order`` [rows] still has hypotheses for.

        Contract of fairseq's beam search: the first call expands every sentence to its hypotheses
        (row i·group + j belongs to sentence i); every later call permutes hypotheses within their
        sentence and drops those of finished sentences, so that an equal count means that every
        sentence is still there.
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
        alive = surviving_sentences(new_order, self.group)
        limit = self.step_limit
        return replace(
            self,
            states=self.states.index_select(0, alive),
            padding_mask=self.padding_mask.index_select(0, alive),
            sentences=self.sentences.index_select(0, alive),
            step_limit=None if limit is None else limit.index_select(0, alive),
            layer_states=[],
        )

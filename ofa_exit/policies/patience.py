"""PABEE's policy: exit once heads in a row have predicted the same word."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch

from ofa_exit.policies.base import GateAnswer, GateInput, option
from ofa_exit.policies.head_policy import HeadPolicy, layers_option
from ofa_exit.policies.measures import predicted_word


@dataclass
class PatienceExit(HeadPolicy):
    """Exit once T heads in a row agree with the one before (PABEE, Zhou et al. 2020).

    The counter is 0 after the first head. Each further head adds 1 if it predicts the word of the
    head before it, among the allowed words, and resets the counter otherwise. So the earliest exit
    is at head T + 1. With fewer heads the model runs at full depth, and no head runs. The encoder
    runs in full.

    Differs from the released code: that exits when all rows of a batch agree. Here each position of
    each hypothesis counts for itself.
    """

    patience: int = option(
        2,
        "heads in a row that must agree with the one before (default: 2)",
        at_least=1,
        tries=tuple(range(12, 0, -1)),
    )
    layers: Optional[Sequence[int]] = layers_option()

    def check(self, model: Any) -> None:
        super().check(model)
        if self.patience >= model.decoder_layers:
            raise ValueError(
                f"--exit-patience {self.patience} never exits: the model has "
                f"{model.decoder_layers} decoder layers. Give a smaller number"
            )

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        tried = super().select_heads(layers)
        return tried if len(tried) > self.patience else []

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        if not seen.has_head:
            return False
        word = seen.scores(predicted_word)  # Long [R, P], -1 for none
        previous = seen.memory.get("word", torch.full_like(word, -1))
        agreed = seen.memory.get("agreed", torch.zeros_like(word))
        agreed = torch.where((word == previous) & (word >= 0), agreed + 1, 0)
        seen.memory.update(word=word, agreed=agreed)
        return agreed >= self.patience

"""BLIPEE's policy: leave at the first exit that is sure of its word."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from ofa_exit.policies.base import ExitPolicy, Gate, GateInput
from ofa_exit.policies.measures import softmax_confidence
from ofa_exit.policies.schedules import check_threshold


@dataclass
class ConfidenceExit(ExitPolicy):
    """Leaves at the first exit whose largest softmax probability is above α (BLIPEE Section 3.5).

    S_i = max over words of C_N(E_i(h^i)), over the words allowed where a task has a closed set of
    them. The encoder runs in full. alpha: finite and at least 0; 1 or more means never. layers:
    decoder layers, from 1, whose exits are tried; None tries all that the model has. An exit that
    is not tried costs nothing.
    """

    alpha: float = 0.8
    layers: Optional[Sequence[int]] = None

    def __post_init__(self) -> None:
        self.alpha = check_threshold("alpha", self.alpha)
        if self.layers is not None and not (
            isinstance(self.layers, (list, tuple))
            and self.layers
            and all(type(layer) is int and layer >= 1 for layer in self.layers)
        ):
            raise ValueError(f"layers must be a list of decoder layers, got {self.layers!r}")

    def exits_used(self, exits: Sequence[int]) -> Collection[int]:
        if self.alpha >= 1:
            return ()
        return exits if self.layers is None else [e for e in exits if e in self.layers]

    def decoder_gate(self) -> Optional[Gate]:
        if self.alpha >= 1:
            return None

        def gate(seen: GateInput) -> Tensor | bool:
            if seen.exit_scores is None:  # no exit behind this layer
                return False
            return seen.exit_scores(softmax_confidence) > self.alpha

        return gate

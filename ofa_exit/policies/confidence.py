"""BLIPEE's policy: exit at the first head that is confident of its word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ofa_exit.policies.base import GateAnswer, GateInput
from ofa_exit.policies.head_policy import HeadThresholdPolicy, layers_option
from ofa_exit.policies.measures import softmax_confidence
from ofa_exit.policies.thresholds import PerLayer, at_layer, threshold_option


@dataclass
class ConfidenceExit(HeadThresholdPolicy):
    """Exit at the first head whose largest softmax probability exceeds α (BLIPEE Section 3.5).

    S_i = max over words of C_N(E_i(h^i)), over the allowed words where a task has a closed set.
    The encoder runs in full. BLIPEE's heads are those of ``--exit-head transformer``.
    """

    threshold_field = "alpha"
    alpha: PerLayer = threshold_option(
        0.8,
        "exit if a head's top-1 probability exceeds alpha (1 or more: never)",
        tries=(0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
    )
    layers: Optional[Sequence[int]] = layers_option()

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        limit = at_layer(self.alpha, seen.layer)
        return seen.has_head and seen.scores(softmax_confidence) > limit

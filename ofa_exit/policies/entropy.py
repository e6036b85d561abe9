"""DeeBERT's policy: exit at the first head whose word distribution has little entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from ofa_exit.policies.base import GateAnswer, GateInput, option
from ofa_exit.policies.head_policy import HeadThresholdPolicy, layers_option
from ofa_exit.policies.measures import softmax_entropy
from ofa_exit.policies.thresholds import PerLayer, at_layer, threshold_option


@dataclass
class EntropyExit(HeadThresholdPolicy):
    """Exit at the first head whose entropy is below S (DeeBERT, Xin et al. 2020).

    H_i = -Σ_v p_i(v)·ln p_i(v), over the allowed words where a task has a closed set. At S = 0
    nothing exits. The encoder runs in full.

    Differs from the paper: its samples are sentences of an encoder. Here each is one position of
    one hypothesis in the decoder. The default of captioning is that of DeeCap (Fei et al. 2022).
    """

    threshold_field = "entropy"
    entropy: PerLayer = threshold_option(
        0.5,
        "exit at the first head whose entropy in nats is below this (0: never)",
        "captioning 0.5, answers 0.1",
        is_share=False,
        tries=(0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
    )
    normalized: bool = option(
        False,
        "divide the entropy by ln of the number of allowed words: 0 is certain, 1 uniform",
    )
    layers: Optional[Sequence[int]] = layers_option()

    @classmethod
    def defaults(cls, task: str) -> dict[str, Any]:
        return {"entropy": 0.1} if task == "answer" else {}

    def is_never(self, threshold: float) -> bool:
        return threshold <= 0

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        measure = partial(softmax_entropy, normalized=self.normalized)
        return seen.has_head and seen.scores(measure) < at_layer(self.entropy, seen.layer)

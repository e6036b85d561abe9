"""CALM's policies: exit once a confidence measure reaches a threshold that falls over the words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from torch import Tensor

from ofa_exit.policies.base import GateAnswer, GateInput
from ofa_exit.policies.head_policy import HeadThresholdPolicy, layers_option
from ofa_exit.policies.measures import hidden_saturation, softmax_confidence, softmax_margin
from ofa_exit.policies.schedules import (
    beta_option,
    reject_unused_parameters,
    schedule_option,
    tau_option,
    threshold_of_step,
)
from ofa_exit.policies.thresholds import PerLayer, at_layer, threshold_option


@dataclass
class CalmExit(HeadThresholdPolicy):
    """Exit at the first head where a confidence is at least λ(t) (CALM, Schuster et al. 2022).

    Subclasses say what the confidence is. The encoder runs in full. CALM's heads are shared, which
    models have without ``--exit-layers``.
    """

    threshold_field = "threshold"
    threshold: PerLayer = threshold_option(
        0.9,
        "exit once the confidence reaches this threshold (1 or more: never)",
        tries=(0.99, 0.97, 0.95, 0.92, 0.9, 0.85, 0.8, 0.7, 0.5, 0.3),
    )
    schedule: str = schedule_option("calm")
    beta: float = beta_option(0.9)
    tau: float = tau_option(4.0)
    layers: Optional[Sequence[int]] = layers_option()

    @classmethod
    def defaults(cls, task: str) -> dict[str, Any]:
        return {"schedule": "static"} if task == "answer" else {}

    def check(self, model: Any) -> None:
        super().check(model)
        reject_unused_parameters(self.schedule, self.given)

    def confidence(self, seen: GateInput) -> Tensor:
        """Return the confidence [R, P] after a layer that a head follows, float32."""
        raise NotImplementedError

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        if not seen.has_head:
            return False
        limit = at_layer(self.threshold, seen.layer)
        return self.confidence(seen) >= threshold_of_step(
            seen, limit, self.schedule, self.beta, self.tau
        )


@dataclass
class SoftmaxExit(CalmExit):
    """The confidence is the head's largest probability."""

    def confidence(self, seen: GateInput) -> Tensor:
        return seen.scores(softmax_confidence)


@dataclass
class SoftmaxDiffExit(CalmExit):
    """The confidence is the head's largest probability minus the second largest."""

    def confidence(self, seen: GateInput) -> Tensor:
        return seen.scores(softmax_margin)


@dataclass
class SaturationExit(CalmExit):
    """The confidence is the cosine of the decoder's states before and after the layer.

    Nothing exits after layer 1, as in the authors' code, which has no state before the first exit.

    Differs from the authors' code: that compares the states at consecutive exits. They are those of
    consecutive layers if every layer has an exit.
    """

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        return [layer for layer in super().select_heads(layers) if layer > 1]

    def confidence(self, seen: GateInput) -> Tensor:
        return hidden_saturation(seen.previous, seen.current)


@dataclass
class MetaExit(CalmExit):
    """The confidence is that of a learned classifier, see ``GateInput.confidence``."""

    needs_confidence: ClassVar[bool] = True

    def confidence(self, seen: GateInput) -> Tensor:
        return seen.confidence()

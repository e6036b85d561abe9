"""A learned gate: exit once a logistic regression expects the last layer's word."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ofa_exit.policies.base import GateAnswer, GateInput, OptionError, Origin, option, per_row
from ofa_exit.policies.gate_file import GateFile, read_gate
from ofa_exit.policies.measures import log_norms, log_step
from ofa_exit.policies.schedules import (
    beta_option,
    reject_unused_parameters,
    schedule_option,
    tau_option,
    threshold_of_step,
)
from ofa_exit.policies.similarity import (
    EncoderSimilarity,
    encoder_similarity_option,
    encoder_threshold_option,
    image_threshold_option,
    text_threshold_option,
)
from ofa_exit.policies.thresholds import NEVER, PerLayer, at_layer, threshold_option


def parse_path(value: Any) -> str:
    """Return the path of a file. Raises ValueError."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be the path of a file, got {value!r}")
    return value


class GateNumbers:
    """Weights and biases of a gate, on the devices that asked for them."""

    def __init__(self, gate: GateFile) -> None:
        self.layers = [gate.coefficients(layer + 1) for layer in range(len(gate.layers))]
        self._weights: dict[torch.device, list[Tensor]] = {}

    def of_layer(self, layer: int, device: torch.device) -> tuple[Tensor, float, float]:
        """Return what follows a layer, from 1.

        Returns: weights of the norms, float32 [3, 1, 1], the weight of the step, and the bias.
        """
        if device not in self._weights:
            self._weights[device] = [
                torch.tensor(weights[:-1], device=device).view(-1, 1, 1)
                for weights, _ in self.layers
            ]
        weights, bias = self.layers[layer - 1]
        return self._weights[device][layer - 1], weights[-1], bias


@dataclass
class LearnedExit(EncoderSimilarity):
    """Exit after a decoder layer i once p_i reaches P(t), the threshold with its schedule.

    p_i = sigmoid(w_i · x + b_i) is the probability that the word after layer i is the last
    layer's. x are ``measures.GATE_FEATURES``, and w_i and b_i those of ``ofa-exit fit-gate``. The
    encoder exits by cosine, as in ``similarity``, and by default never. No words are scored.

    Differs from CALM's meta classifier: the features are four numbers instead of the hidden state,
    so nothing is trained, and the step of the word is one of them.
    """

    decoder_field: ClassVar[str] = "gate_confidence"
    gate_file: str = option(
        dataclasses.MISSING,
        "file of ofa-exit fit-gate, which was fitted on this checkpoint",
        parse=parse_path,
        flag="gate",
        metavar="GATE.json",
    )
    gate_confidence: PerLayer = threshold_option(
        0.9,
        "exit once the gate expects the last layer's word with this probability (1 or more: never)",
        tries=(0.99, 0.98, 0.97, 0.95, 0.92, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5),
    )
    image_threshold: PerLayer = image_threshold_option(NEVER)
    text_threshold: PerLayer = text_threshold_option(NEVER)
    encoder_threshold: PerLayer = encoder_threshold_option()
    schedule: str = schedule_option("static")
    beta: float = beta_option(0.95)
    tau: float = tau_option(1.0)
    encoder_similarity: str = encoder_similarity_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self._gate: GateFile = read_gate(self.gate_file)
        except ValueError as error:
            raise OptionError("gate_file", str(error)) from error
        self._numbers = GateNumbers(self._gate)

    @property
    def origin(self) -> Origin:  # type: ignore[override]
        """Return the checkpoint and task that the gate was fitted on."""
        return Origin(
            f"--exit-gate {self.gate_file}",
            "Fit a gate for this one: ofa-exit fit-gate",
            self._gate.digest,
            self._gate.checkpoint,
            self._gate.task,
        )

    def check(self, model: Any) -> None:
        super().check(model)
        reject_unused_parameters(self.schedule, self.given)
        fitted = len(self._numbers.layers) + 1
        if fitted != model.decoder_layers:
            raise ValueError(
                f"--exit-gate {self.gate_file} was fitted on {fitted} decoder layers, and the "
                f"model has {model.decoder_layers}. Fit a gate for this one: ofa-exit fit-gate"
            )

    def confidence(self, seen: GateInput) -> Tensor:
        """Return p_i of every active row and position, float32 [R, P]."""
        step = seen.memory.get("log step")
        if step is None:  # once for all layers
            assert seen.step is not None
            step = seen.memory["log step"] = per_row(log_step(seen.step), len(seen.current))
        norms = log_norms(seen.previous, seen.current)  # [3, R, P]
        weights, step_weight, bias = self._numbers.of_layer(seen.layer, norms.device)
        logit = torch.add((norms * weights).sum(dim=0), step, alpha=step_weight) + bias
        return logit.sigmoid()

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        limit = at_layer(self.gate_confidence, seen.layer)
        if limit >= 1:
            return False
        threshold = threshold_of_step(seen, limit, self.schedule, self.beta, self.tau)
        return self.confidence(seen) >= threshold

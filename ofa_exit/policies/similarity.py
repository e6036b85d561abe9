"""MuE's policy: stop where successive layers' states have saturated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.policies.base import ExitPolicy, Gate, GateInput
from ofa_exit.policies.measures import (
    hidden_saturation,
    sample_saturation,
    token_mean_saturation,
)
from ofa_exit.policies.schedules import NEVER, THRESHOLD_SCHEDULES, check_threshold

ENCODER_SIMILARITIES = {"sample": sample_saturation, "token_mean": token_mean_saturation}


@dataclass
class SimilarityExit(ExitPolicy):
    """Leaves after a layer whose output has a cosine above a threshold with its input.

    MuE Eqs. 7-11 and Algorithm 1. Thresholds are finite and at least 0; 1 or more means never,
    since the cosine of equal vectors may round to a little over 1.

    image_threshold, text_threshold: for the two passes of a split encoder.
    encoder_threshold: for an encoder that runs both modalities together.
    decoder_threshold: θ of Eq. 11; schedule, beta, tau: how it decays over the steps.
    encoder_similarity: one cosine over a sample's states ("sample") or the mean of its tokens'
        cosines ("token_mean").

    Raises ValueError on numbers or names that make no sense.
    """

    image_threshold: float = 0.9
    text_threshold: float = 0.95
    encoder_threshold: float = NEVER
    decoder_threshold: float = 0.99
    schedule: str = "decay"
    beta: float = 0.95
    tau: float = 1.0
    encoder_similarity: str = "sample"

    def __post_init__(self) -> None:
        for part in ("image", "text", "encoder", "decoder"):
            name = f"{part}_threshold"
            setattr(self, name, check_threshold(name, getattr(self, name)))
        self.beta = check_threshold("beta", self.beta)
        if self.beta > 1:
            raise ValueError(f"beta must lie between 0 and 1, got {self.beta}")
        self.tau = check_threshold("tau", self.tau)
        for value, choices, what in (
            (self.schedule, THRESHOLD_SCHEDULES, "schedule"),
            (self.encoder_similarity, ENCODER_SIMILARITIES, "encoder similarity"),
        ):
            if value not in choices:
                raise ValueError(f"unknown {what} {value!r}; choose from {sorted(choices)}")

    def image_gate(self) -> Optional[Gate]:
        return self._encoder_gate(self.image_threshold)

    def text_gate(self) -> Optional[Gate]:
        return self._encoder_gate(self.text_threshold)

    def joint_gate(self) -> Optional[Gate]:
        return self._encoder_gate(self.encoder_threshold)

    def _encoder_gate(self, threshold: float) -> Optional[Gate]:
        if threshold >= 1:
            return None
        similarity = ENCODER_SIMILARITIES[self.encoder_similarity]

        def gate(seen: GateInput) -> Tensor:
            return similarity(seen.previous, seen.current, seen.padding_mask) > threshold

        return gate

    def decoder_gate(self) -> Optional[Gate]:
        if self.decoder_threshold >= 1:
            return None
        schedule = THRESHOLD_SCHEDULES[self.schedule]
        known: list[Tensor] = []  # step, step limit and their thresholds: the same for all layers

        def gate(seen: GateInput) -> Tensor:
            assert seen.step is not None and seen.step_limit is not None
            if not known or known[0] is not seen.step or known[1] is not seen.step_limit:
                threshold = schedule(
                    self.decoder_threshold, seen.step, seen.step_limit, self.beta, self.tau
                )
                threshold = torch.where(threshold < 1, threshold, NEVER)
                known[:] = [seen.step, seen.step_limit, threshold]
            return hidden_saturation(seen.previous, seen.current) > known[2]

        return gate

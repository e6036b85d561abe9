"""How the decoder's threshold changes along the generated sequence."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NEVER = 2.0
"""A threshold no cosine reaches."""

ThresholdSchedule = Callable[[float, Tensor, Tensor, float, float], Tensor]
"""(θ, step [P], step_limit [N, 1], β, τ) -> thresholds, broadcastable to [N, P], float32."""


def static_threshold(
    theta: float, step: Tensor, step_limit: Tensor, beta: float, tau: float
) -> Tensor:
    """θ at every step."""
    return torch.full_like(step, theta, dtype=torch.float32)


def decayed_threshold(
    theta: float, step: Tensor, step_limit: Tensor, beta: float, tau: float
) -> Tensor:
    """Θ(t) = β·θ + (1 - β)·exp(-τ·t / N) (MuE Eq. 11, after CALM Eq. 5); t counts from 0."""
    return beta * theta + (1.0 - beta) * torch.exp(-tau * step / step_limit.clamp(min=1))


def official_threshold(
    theta: float, step: Tensor, step_limit: Tensor, beta: float, tau: float
) -> Tensor:
    """The schedule of MuE's released code: β and τ are not used.

    No exit in the first third of the steps, then 0.9·θ + 0.1·exp(-(t + 1) / (N + 1)).
    Differs from the paper, whose Eq. 11 is ``decayed_threshold``.
    """
    later = 0.9 * theta + 0.1 * torch.exp(-(step + 1) / (step_limit + 1))
    return torch.where(3 * step < step_limit, torch.full_like(later, NEVER), later)


THRESHOLD_SCHEDULES: dict[str, ThresholdSchedule] = {
    "decay": decayed_threshold,
    "static": static_threshold,
    "official": official_threshold,
}


def check_threshold(name: str, value: float) -> float:
    """Refuses what cannot be a threshold; 1 or more is allowed and means never."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    return float(value)

"""How the decoder's threshold changes along the generated sequence."""

from __future__ import annotations

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
    """Return θ at every step."""
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

    No exit while t < (N + 1) / 3, then 0.9·θ + 0.1·exp(-(t + 1) / (N + 1)).
    Differs from the paper, whose Eq. 11 is ``decayed_threshold``.
    """
    later = 0.9 * theta + 0.1 * torch.exp(-(step + 1) / (step_limit + 1))
    return torch.where(3 * step < step_limit + 1, torch.full_like(later, NEVER), later)


THRESHOLD_SCHEDULES: dict[str, ThresholdSchedule] = {
    "decay": decayed_threshold,
    "static": static_threshold,
    "official": official_threshold,
}

"""How the decoder's threshold changes along the generated sequence."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ofa_exit.policies.base import GateInput, option, per_row
from ofa_exit.policies.thresholds import NEVER

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
    """Θ(t) = β·θ + (1 - β)·exp(-τ·t / N) (MuE Eq. 11); t counts from 0."""
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


def calm_threshold(
    theta: float, step: Tensor, step_limit: Tensor, beta: float, tau: float
) -> Tensor:
    """The schedule of CALM's released code, 0.9·θ + 0.1·θ·exp(-τ·t / N): β is not used.

    Differs from ``decayed_threshold``, where the part that decays does not depend on θ.
    """
    return 0.9 * theta + 0.1 * theta * torch.exp(-tau * step / step_limit.clamp(min=1))


THRESHOLD_SCHEDULES: dict[str, ThresholdSchedule] = {
    "decay": decayed_threshold,
    "static": static_threshold,
    "official": official_threshold,
    "calm": calm_threshold,
}
PARAMETERS = {"beta": ["decay"], "tau": ["decay", "calm"]}
"""The schedules that a parameter belongs to."""


def schedule_option(default: str) -> Any:
    """Declare the field ``schedule`` of a policy."""
    return option(
        default,
        "how the decoder's threshold changes over the words: "
        f"{', '.join(THRESHOLD_SCHEDULES)} (default: captioning decay, or calm for CALM's "
        "policies; answers static)",
        choices=THRESHOLD_SCHEDULES,
    )


def beta_option(default: float) -> Any:
    """Declare the field ``beta`` of a policy."""
    help = "beta of the decay, 0 to 1 (default: 0.95, or 0.9 for CALM's policies)"
    return option(default, help, at_least=0, at_most=1)


def tau_option(default: float) -> Any:
    """Declare the field ``tau`` of a policy."""
    help = "tau of the decay and of calm (default: 1, or 4 for CALM's policies)"
    return option(default, help, at_least=0)


def reject_unused_parameters(schedule: str, given: Collection[str]) -> None:
    """Raise ValueError if the user gave a parameter that the schedule does not have."""
    for name, schedules in PARAMETERS.items():
        if name in given and schedule not in schedules:
            raise ValueError(
                f"--exit-{name} belongs to --exit-schedule {' or '.join(schedules)}; the schedule "
                f"is {schedule}"
            )


def threshold_of_step(
    seen: GateInput, theta: float, schedule: str, beta: float, tau: float
) -> Tensor:
    """Return Θ(t) of every active row and position, float32 [R, P]; ``NEVER`` for 1 or more.

    It is kept in the gate's memory: layers of one θ share it for a step.
    """
    name = f"threshold {theta}"
    threshold = seen.memory.get(name)
    if threshold is None:
        assert seen.step is not None and seen.step_limit is not None
        threshold = THRESHOLD_SCHEDULES[schedule](theta, seen.step, seen.step_limit, beta, tau)
        threshold = torch.where(threshold < 1, threshold, NEVER)
        seen.memory[name] = threshold = per_row(threshold, len(seen.current))
    return threshold

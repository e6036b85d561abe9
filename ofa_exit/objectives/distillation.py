"""Distillation between layers: from the final one (BLIPEE Eq. 5) or from all others (LeeBERT)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTIONS = ("exit_to_final", "final_to_exit")
MODES = ("none", "final", "mutual")


def teachers(mode: str, students: Sequence[int], last: int) -> dict[int, list[int]]:
    """Return which layers teach each student, by layer; students without teachers are left out.

    none: no layer. final: the last layer teaches all others. mutual: every student, and the last
        layer, teaches every other student.

    Args:
        mode: one of ``MODES``.
        students: layers with a loss, in increasing order.
        last: number of the last layer.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown distillation {mode!r}; choose from {', '.join(MODES)}")
    willing = {"none": [], "final": [last], "mutual": sorted({*students, last})}[mode]
    found = {student: [layer for layer in willing if layer != student] for student in students}
    return {student: layers for student, layers in found.items() if layers}


@dataclass(frozen=True)
class Distillation:
    """How layers learn from each other in addition to the labels.

    The loss of layer i is a·CE_i + b·Σ_j T²·KL(p_j, p_i) over its teachers j, whose probabilities
    get no gradient. Without teachers it is CE_i.

    Attributes:
        mode: who teaches, one of ``MODES``; see ``teachers``.
        temperature: T.
        weight: b.
        label_weight: a.
    """

    mode: str = "none"
    temperature: float = 1.0
    weight: float = 1.0
    label_weight: float = 1.0

    def teachers(self, students: Sequence[int], last: int) -> dict[int, list[int]]:
        return teachers(self.mode, students, last)

    def loss(self, logits: Tensor, teacher_logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Return T²·KL(teacher, student) per token, [M], of logits [M, V] each."""
        return distillation_loss(logits, teacher_logits, "final_to_exit", allowed, self.temperature)

    def combine(self, label: Tensor, distilled: Sequence[Tensor]) -> Tensor:
        """Return the loss of a layer from that of the labels and those of its teachers."""
        if not distilled:
            return label
        return self.label_weight * label + self.weight * torch.stack(list(distilled)).sum(0)


def distillation_loss(
    logits: Tensor,
    final_logits: Tensor,
    direction: str = "exit_to_final",
    allowed: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return the KL divergence between an exit's words and the final layer's, per token.

    The final layer stands for any layer that teaches.

    exit_to_final: KL(p^i, p^N) = Σ_v p^i(v)·log(p^i(v) / p^N(v)), as printed in BLIPEE Eq. 5.
    final_to_exit: KL(p^N, p^i), the usual form of distillation. The exit must cover every word
        that the final layer finds possible.

    Args:
        logits: of the exit, [M, V], of any floating type.
        final_logits: of the final layer, [M, V], without gradient.
        direction: one of ``DIRECTIONS``.
        allowed: Bool [M, V] or None; other words have no probability.
        temperature: T > 0. Both distributions are softmax(logits / T), and the divergence is
            multiplied by T², which keeps the scale of its gradients.

    Returns: float32 [M], in nats.

    Raises:
        ValueError: for an unknown direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; choose from {', '.join(DIRECTIONS)}")
    logits, final_logits = logits.float(), final_logits.float()
    if temperature != 1:
        logits, final_logits = logits / temperature, final_logits / temperature
    if allowed is not None:
        # A finite floor, since 0·(-inf) would be NaN.
        floor = torch.finfo(torch.float32).min / 2
        logits = logits.masked_fill(~allowed, floor)
        final_logits = final_logits.masked_fill(~allowed, floor)
    log_p, log_q = logits.log_softmax(-1), final_logits.log_softmax(-1)
    if direction == "final_to_exit":
        log_p, log_q = log_q, log_p
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)

"""Distillation of the final layer's words into an exit (BLIPEE Eq. 5)."""

import torch
from torch import Tensor

DIRECTIONS = ("exit_to_final", "final_to_exit")


def distillation_loss(
    logits: Tensor,
    final_logits: Tensor,
    direction: str = "exit_to_final",
    allowed: Tensor | None = None,
) -> Tensor:
    """Return the KL divergence between an exit's words and the final layer's, per token.

    exit_to_final: KL(p^i, p^N) = Σ_v p^i(v)·log(p^i(v) / p^N(v)), as printed in BLIPEE Eq. 5.
    final_to_exit: KL(p^N, p^i), the usual form of distillation. The exit must cover every word
        that the final layer finds possible.

    Args:
        logits: of the exit, [M, V], of any floating type.
        final_logits: of the final layer, [M, V], without gradient.
        direction: one of ``DIRECTIONS``.
        allowed: Bool [M, V] or None; other words have no probability.

    Returns: float32 [M], in nats.

    Raises:
        ValueError: for an unknown direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; choose from {', '.join(DIRECTIONS)}")
    logits, final_logits = logits.float(), final_logits.float()
    if allowed is not None:
        # A finite floor, since 0·(-inf) would be NaN.
        floor = torch.finfo(torch.float32).min / 2
        logits = logits.masked_fill(~allowed, floor)
        final_logits = final_logits.masked_fill(~allowed, floor)
    log_p, log_q = logits.log_softmax(-1), final_logits.log_softmax(-1)
    if direction == "final_to_exit":
        log_p, log_q = log_q, log_p
    return (log_p.exp() * (log_p - log_q)).sum(-1)

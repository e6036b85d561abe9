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
    """KL divergence between the words of an exit and of the final layer, token by token.

    exit_to_final: KL(p^i, p^N) = sum over words of p^i · log(p^i / p^N), as BLIPEE Eq. 5 prints it.
    final_to_exit: KL(p^N, p^i), the usual form of distillation, in which the exit has to cover
        whatever the final layer finds possible.

    logits: the exit's, [M, V]; final_logits: the final layer's, without gradient, [M, V]; of any
    floating type. allowed: Bool [M, V] or None; only allowed words have a probability.
    Returns float32 [M], in nats. Raises ValueError for another direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; choose from {', '.join(DIRECTIONS)}")
    own, final = logits.float(), final_logits.float()
    if allowed is not None:
        # A finite floor instead of -inf: 0 · (-inf) would be NaN.
        floor = torch.finfo(torch.float32).min / 2
        own, final = own.masked_fill(~allowed, floor), final.masked_fill(~allowed, floor)
    own, final = own.log_softmax(-1), final.log_softmax(-1)
    if direction == "final_to_exit":
        own, final = final, own
    return (own.exp() * (own - final)).sum(-1)

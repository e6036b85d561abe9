"""Encouraging loss: the cross-entropy keeps a steep slope for words that are already likely."""

import math

import torch
from torch import Tensor


def encouraging_bonus(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 0.0,
    log_end: float = 0.75,
    allowed: Tensor | None = None,
    confidence: Tensor | None = None,
) -> Tensor:
    """Return what each token's cross-entropy is increased by (Zhao et al., AAAI 2022).

    (1 - ε)·b(p_t) + ε/V·Σ_v b(p_v) with b(p) = log(1 - p), continued by its tangent where
    p > ``log_end``, and never below log(1e-5). The bonus is negative: a likely target lowers the
    loss further.

    Args:
        logits: [M, V] of any floating type; everything is computed in float32.
        target: Long [M].
        epsilon: label smoothing.
        log_end: where the tangent begins, 0 < log_end <= 1; 1 for none.
        allowed: Bool [M, V] or None; other words have p = 0.
        confidence: weight of each token's log-probabilities, [M], or None.

    Returns: float32 [M], in nats.
    """
    logits = logits.float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    lprobs = logits.log_softmax(-1)
    if confidence is not None:
        lprobs = lprobs * confidence.float().unsqueeze(1)
    p = lprobs.exp()  # [M, V]
    bonus = (1 - p).clamp(min=1e-5).log()
    if log_end < 1:
        tangent = math.log(1 - log_end) - (p - log_end) / (1 - log_end)
        bonus = torch.where(p > log_end, tangent, bonus)
    chosen = bonus.gather(1, target.unsqueeze(1)).squeeze(1)
    return (1 - epsilon) * chosen + epsilon / logits.size(1) * bonus.sum(1)

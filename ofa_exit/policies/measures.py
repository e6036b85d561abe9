"""Measures of states and word scores that decide whether a row may exit."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

EPSILON = 1e-8
"""Lower bound of each norm in the denominator of a cosine."""


def _token_products(previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the dot product of every token's two states, and both norms.

    Every cosine below is computed from these. ``F.cosine_similarity`` would write normalised copies
    of both states. No operation here runs in half precision under autocast, as ``vecdot`` would.

    Args:
        previous, current: [..., C], of any floating type.

    Returns: float32 [...] each.
    """
    previous, current = previous.float(), current.float()
    norm = torch.linalg.vector_norm
    return (previous * current).sum(dim=-1), norm(previous, dim=-1), norm(current, dim=-1)


def _cosine(product: Tensor, previous_norm: Tensor, current_norm: Tensor) -> Tensor:
    """Divide a dot product by both norms; 0 for a zero vector, as in ``F.cosine_similarity``."""
    return product / (previous_norm.clamp_min(EPSILON) * current_norm.clamp_min(EPSILON))


def hidden_saturation(previous: Tensor, current: Tensor) -> Tensor:
    """Return the cosine between the states before and after a layer, per token.

    MuE Eqs. 7 and 10.

    Args:
        previous, current: [..., C].

    Returns: float32 [...], between -1 and 1 up to rounding.
    """
    return _cosine(*_token_products(previous, current))


GATE_FEATURES = ("change", "before", "after", "step")
"""What a learned gate looks at: ``log_norms``, and ``log_step``."""
SMALLEST_NORM = 1e-5


def log_norms(previous: Tensor, current: Tensor) -> Tensor:
    """Return ln |current - previous|, ln |previous| and ln |current|, per token.

    The cosine of both states and the ratio of their norms are functions of these three, which take
    fewer operations.

    Args:
        previous, current: [..., C].

    Returns: float32 [3, ...].
    """
    previous, current = previous.float(), current.float()
    states = torch.stack((current - previous, previous, current))  # [3, ..., C]
    return torch.linalg.vector_norm(states, dim=-1).clamp_min(SMALLEST_NORM).log()


def log_step(step: Tensor) -> Tensor:
    """Return ln(1 + t) of steps t from 0, float32."""
    return step.float().log1p()


def sample_saturation(
    previous: Tensor, current: Tensor, padding_mask: Optional[Tensor] = None
) -> Tensor:
    """Return one cosine per sample, over the concatenated states of its tokens (MuE Eqs. 7-9).

    Differs from the paper: its released code concatenates the whole batch. Here each sample is
    measured by itself, so a decision never depends on the batch.

    Args:
        previous, current: [B, T, C].
        padding_mask: Bool [B, T], True on padding, which does not count; or None.

    Returns: float32 [B].
    """
    products = _token_products(previous, current)  # [B, T] each
    product, previous_norm, current_norm = (
        values if padding_mask is None else values.masked_fill(padding_mask, 0.0)
        for values in products
    )
    norm = torch.linalg.vector_norm
    return _cosine(product.sum(dim=1), norm(previous_norm, dim=1), norm(current_norm, dim=1))


def token_mean_saturation(
    previous: Tensor, current: Tensor, padding_mask: Optional[Tensor] = None
) -> Tensor:
    """Return the mean cosine of a sample's tokens; shapes as in ``sample_saturation``."""
    cosines = hidden_saturation(previous, current)
    if padding_mask is None:
        return cosines.mean(dim=1)
    kept = (~padding_mask).to(cosines.dtype)
    return (cosines * kept).sum(dim=1) / torch.clamp(kept.sum(dim=1), min=1.0)


def softmax_confidence(logits: Tensor) -> Tensor:
    """Return the largest softmax probability, max_v p(v) (BLIPEE Section 3.5).

    It is exp(max - logsumexp), so the probabilities of all words are not stored.

    Args:
        logits: [..., V], -inf on words that are not allowed.

    Returns: float32 [...].
    """
    logits = logits.float()
    return (logits.amax(-1) - logits.logsumexp(-1)).exp()


def softmax_margin(logits: Tensor) -> Tensor:
    """Return the largest softmax probability minus the second largest (CALM).

    Args:
        logits: [..., V], -inf on words that are not allowed.

    Returns: float32 [...]; 1 where one word is allowed.
    """
    logits = logits.float()
    best = (logits.topk(2, dim=-1).values - logits.logsumexp(-1, keepdim=True)).exp()  # [..., 2]
    return best[..., 0] - best[..., 1]


def softmax_entropy(logits: Tensor, normalized: bool = False) -> Tensor:
    """Return the entropy of the softmax in nats, -Σ_v p(v)·ln p(v) (DeeBERT): small is certain.

    Args:
        logits: [..., V], -inf on words that are not allowed.
        normalized: divide by ln of the number of allowed words.

    Returns: float32 [...]; 0 where one word is allowed.
    """
    logits = logits.float()
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)  # 0 where p is 0
    if not normalized:
        return entropy
    allowed = (logits > float("-inf")).sum(-1)
    return entropy / allowed.clamp(min=2).log()  # of one word the entropy is 0 already


def predicted_word(logits: Tensor) -> Tensor:
    """Return the most probable word, Long [...]; -1 where a logit is NaN or no word is allowed.

    Args:
        logits: [..., V], -inf on words that are not allowed.
    """
    best, word = logits.max(dim=-1)
    return torch.where(best > float("-inf"), word, -1)

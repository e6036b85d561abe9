"""Confidence measures: numbers that grow as it becomes safer to stop."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

EPSILON = 1e-8
"""Least length that a cosine divides by."""


def _token_products(previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Product of every token's two states and their lengths, float32; [..., C] to [...].

    From these every cosine below is made, with one copy's worth of temporaries where
    ``F.cosine_similarity`` writes normalised copies. No operation here is one that autocast would
    do in half precision, as it does ``vecdot``.
    """
    before, after = previous.float(), current.float()
    length = torch.linalg.vector_norm
    return (before * after).sum(dim=-1), length(before, dim=-1), length(after, dim=-1)


def _cosine(product: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """0 where a vector has no length, as in ``F.cosine_similarity``."""
    return product / (before.clamp_min(EPSILON) * after.clamp_min(EPSILON))


def hidden_saturation(previous: Tensor, current: Tensor) -> Tensor:
    """Cosine between the states before and after a layer, token by token (MuE Eqs. 7 and 10).

    previous, current: [..., C]. Returns float32 [...], between -1 and 1 up to rounding.
    """
    return _cosine(*_token_products(previous, current))


def sample_saturation(
    previous: Tensor, current: Tensor, padding_mask: Optional[Tensor] = None
) -> Tensor:
    """One cosine a sample over all its unpadded states, laid end to end (MuE Eqs. 7-9).

    Differs from the paper: its released code lays the whole batch end to end; here each sample
    decides for itself, so that a decision never depends on the batch.

    previous, current: [B, T, C]; padding_mask: Bool [B, T]. Returns float32 [B].
    """
    product, before, after = (
        of_token if padding_mask is None else of_token.masked_fill(padding_mask, 0.0)
        for of_token in _token_products(previous, current)
    )
    length = torch.linalg.vector_norm
    return _cosine(product.sum(dim=1), length(before, dim=1), length(after, dim=1))


def token_mean_saturation(
    previous: Tensor, current: Tensor, padding_mask: Optional[Tensor] = None
) -> Tensor:
    """Mean over a sample's unpadded tokens of the token-wise cosine; shapes as above."""
    cosines = hidden_saturation(previous, current)
    if padding_mask is None:
        return cosines.mean(dim=1)
    kept = (~padding_mask).to(cosines.dtype)
    return (cosines * kept).sum(dim=1) / torch.clamp(kept.sum(dim=1), min=1.0)


def softmax_confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability, max over v of p(v) (BLIPEE Section 3.5).

    exp(max - logsumexp): no probabilities of all words are made. logits: [..., V], -inf on words
    that are not allowed. Returns float32 [...].
    """
    logits = logits.float()
    return (logits.amax(-1) - logits.logsumexp(-1)).exp()

"""Confidence measures: numbers that grow as it becomes safer to stop."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def hidden_saturation(previous: Tensor, current: Tensor) -> Tensor:
    """Cosine between the states before and after a layer, token by token (MuE Eqs. 7 and 10).

    previous, current: [..., C]. Returns float32 [...], between -1 and 1 up to rounding.
    """
    return F.cosine_similarity(previous.float(), current.float(), dim=-1)


def sample_saturation(
    previous: Tensor, current: Tensor, padding_mask: Optional[Tensor] = None
) -> Tensor:
    """One cosine a sample over all its unpadded states, laid end to end (MuE Eqs. 7-9).

    Differs from the paper: its released code lays the whole batch end to end; here each sample
    decides for itself, so that a decision never depends on the batch.

    previous, current: [B, T, C]; padding_mask: Bool [B, T]. Returns float32 [B].
    """
    before, after = previous.float(), current.float()
    if padding_mask is not None:
        before = before.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        after = after.masked_fill(padding_mask.unsqueeze(-1), 0.0)
    return F.cosine_similarity(before.flatten(1), after.flatten(1), dim=1)


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

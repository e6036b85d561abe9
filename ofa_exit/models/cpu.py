"""Products in the order and the portions that suit a CPU's caches; elsewhere they are torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.runtime.rows import to_slices

FEW_ROWS = (5, 80)
LARGE_WEIGHT = 2**19
PORTION = 1800  # rows


class Linear(nn.Linear):
    """nn.Linear that computes few rows with a large weight on a CPU as (W·xᵀ)ᵀ.

    A decoding step is little else, and MKL takes 0.5 to 0.9 of the time for this order (5 to 80
    rows in float32; below, and for weights under half a million numbers, it takes more).
    """

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear as ``Linear`` does it: x [..., I], weight [O, I] -> [..., O]."""
    rows = x.numel() // x.size(-1)
    if (
        torch.is_grad_enabled()
        or not x.is_cpu
        or not FEW_ROWS[0] <= rows <= FEW_ROWS[-1]
        or weight.numel() < LARGE_WEIGHT
        or weight.dtype != torch.float32
    ):
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).t()
    if bias is None:
        product = torch.mm(weight, columns)
    else:
        product = torch.addmm(bias.unsqueeze(1), weight, columns)
    return product.t().contiguous().view(*x.shape[:-1], -1)


def in_portions(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x) for x [..., C] and an f that treats rows alike and keeps their width.

    On a CPU at inference, a few images at a time, so that what f makes in between, several times as
    wide, stays in the cache: 0.85 of the time of a feed-forward block over 8 images of 900 tokens.
    """
    rows = x.numel() // x.size(-1)
    if torch.is_grad_enabled() or not x.is_cpu or rows < 2 * PORTION:
        return f(x)
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    portions = x.reshape(rows, -1).split(PORTION)
    for done, portion in zip(result.view(rows, -1).split(PORTION), portions):
        done.copy_(f(portion))
    return result


MIN_ELEMENTS_TO_COPY = 2**15
"""Elements copied in about the time that one more attention over few rows takes."""


def row_slices(sentences: list[int], states: Tensor) -> Optional[list[slice]]:
    """Return sentences as slices, if attention should read their K/V slice by slice, in place.

    Args:
        sentences: places of the active sentences, increasing.
        states: the encoder's [S, T, C]; the K/V of a sentence are as large.

    Returns:
        None where copying the K/V together costs less.
    """
    if not states.is_cpu:
        return None
    slices = to_slices(sentences)
    if len(slices) * MIN_ELEMENTS_TO_COPY > len(sentences) * states[0].numel():
        return None
    return slices

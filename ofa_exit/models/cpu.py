"""Fast paths of inference. OFA itself is in the other files; nothing here changes what it computes.

``ENABLED`` is the one switch: without it every hook below is the plain torch operation. The hooks
are ``Linear``, ``in_chunks`` and ``FusedConvNorm``. None of them acts while gradients are recorded.
The first two act on the CPU only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.models.positions import ShapeCache
from ofa_exit.runtime.rows import to_slices

ENABLED = True

MIN_ROWS, MAX_ROWS = 5, 80
MIN_WEIGHT_ELEMENTS = 2**19
CHUNK_ROWS = 1800


class Linear(nn.Linear):
    """Linear layer that multiplies few rows by a large weight as (W·xᵀ)ᵀ.

    A decoder step consists mostly of such products. For 5 to 80 float32 rows MKL takes 0.5 to 0.9
    of the time in this order. It takes longer for fewer rows, and for weights of less than half a
    million elements.
    """

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·Wᵀ + b in the faster order of factors; see ``Linear``.

    Args:
        x: [..., I].
        weight: [O, I].
        bias: [O] or None.

    Returns: [..., O].
    """
    rows = x.numel() // x.size(-1)
    if not (
        _acts_on(x)
        and MIN_ROWS <= rows <= MAX_ROWS
        and weight.numel() >= MIN_WEIGHT_ELEMENTS
        and weight.dtype == torch.float32
    ):
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).t()  # [I, rows]
    if bias is None:
        product = torch.mm(weight, columns)  # [O, rows]
    else:
        product = torch.addmm(bias.unsqueeze(1), weight, columns)
    return product.t().contiguous().view(*x.shape[:-1], -1)


def in_chunks(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return f(x), computed for ``CHUNK_ROWS`` rows at a time.

    The intermediate results of f, which are several times as wide as x, then stay in the CPU's
    cache. A feed-forward block over 8 images of 900 tokens takes 0.85 of the time.

    Args:
        f: a function that treats rows alike and keeps their width.
        x: [..., C].

    Returns: [..., C].
    """
    rows = x.numel() // x.size(-1)
    if not _acts_on(x) or rows < 2 * CHUNK_ROWS:
        return f(x)
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    chunks = x.reshape(rows, -1).split(CHUNK_ROWS)  # [CHUNK_ROWS, C] each
    for out, chunk in zip(result.view(rows, -1).split(CHUNK_ROWS), chunks):
        out.copy_(f(chunk))
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
    if not (ENABLED and states.is_cpu):
        return None
    slices = to_slices(sentences)
    if len(slices) * MIN_ELEMENTS_TO_COPY > len(sentences) * states[0].numel():
        return None
    return slices


class FusedConvNorm(ShapeCache):
    """Module whose convolutions absorb their batch norms at inference, on every device."""

    def conv_norm(self, x: Tensor, conv: Any, norm: Any, relu: bool = True) -> Tensor:
        """Return relu(norm(conv(x))); folded weights are cached until the module's change."""
        if ENABLED and not self.training and not torch.is_grad_enabled():
            weight, bias = self.once_per_shape("folded", conv, lambda: fold(conv, norm))
            x = F.conv2d(x, weight, bias, conv.stride, conv.padding)
        else:
            x = norm(conv(x))
        return F.relu(x, inplace=True) if relu else x


def fold(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals ``conv`` followed by ``norm``.

    w·γ/σ and β - µ·γ/σ with the running statistics µ and σ², computed in float32. The weight,
    [O, I, k, k], is laid out channels last.
    """
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()  # [O]
    weight = (conv.weight.float() * scale[:, None, None, None]).to(conv.weight.dtype)
    bias = (norm.bias.float() - norm.running_mean.float() * scale).to(conv.weight.dtype)
    return weight.contiguous(memory_format=torch.channels_last), bias


def _acts_on(x: Tensor) -> bool:
    return ENABLED and x.is_cpu and not torch.is_grad_enabled()

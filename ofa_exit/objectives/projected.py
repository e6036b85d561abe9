"""Token cross-entropy of several layers' states under one matrix of words.

The same numbers as ``cross_entropy.token_cross_entropy`` of ``features @ weight.T``. Autograd would
keep logits and write further tensors of their size [M, V] in both passes. Here each block of logits
is made once, and its gradient is written over it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ofa_exit.objectives.layerwise import MAX_KEPT_NUMBERS

MAX_BLOCK = MAX_KEPT_NUMBERS
"""Numbers of one block of logits."""


class ProjectedLosses(NamedTuple):
    """Of N layers and M tokens.

    Attributes:
        loss: smoothed cross-entropy in nats, float32 [N, M].
        nll: negative log-likelihood, float32 [N, M], without gradient.
        correct: Bool [N, M], whether the target is the most probable word; None if not asked for.
    """

    loss: Tensor
    nll: Tensor
    correct: Optional[Tensor]


def projected_cross_entropy(
    features: Sequence[Tensor],
    weight: Tensor,
    target: Tensor,
    epsilon: float = 0.0,
    allowed: Tensor | None = None,
    count_correct: bool = False,
) -> ProjectedLosses:
    """Return ``token_cross_entropy`` of every layer.

    Logits [T, V] are made for blocks of T tokens of one layer. Up to ``MAX_KEPT_NUMBERS`` of them
    wait for the backward pass, which computes those of further blocks again.

    Args:
        features: of N layers, [M, C] each.
        weight: [V, C].
        target: Long [M].
        epsilon: label smoothing, 0 <= ε < 1.
        allowed: Bool [M, V] or None, the words that can be an answer.
    """
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        weight, features = weight.to(dtype), [x.to(dtype) for x in features]
    options = (epsilon, count_correct, MAX_KEPT_NUMBERS if torch.is_grad_enabled() else 0)
    loss, nll, correct = _Projected.apply(weight, target, allowed, options, *features)
    return ProjectedLosses(loss, nll, correct if count_correct else None)


class _Block(NamedTuple):
    """Tokens ``start`` to ``end`` of one layer."""

    layer: int
    start: int
    end: int


def _blocks(layers: int, tokens: int, words: int) -> list[_Block]:
    """Return all tokens of all layers in blocks of at most ``MAX_BLOCK`` logits."""
    size = max(1, MAX_BLOCK // words)
    starts = range(0, tokens, size)
    return [_Block(n, a, min(a + size, tokens)) for n in range(layers) for a in starts]


def _eps(epsilon: float, allowed: Tensor | None, words: int) -> tuple[Any, Any]:
    """Return ε_i and the number of words, of every token as [M, 1] where ``allowed`` [M, V] is."""
    if allowed is None:
        return epsilon / max(words - 1, 1), words
    counted = allowed.sum(-1, keepdim=True)
    # The loss of a single allowed word is 0, whatever ε_i.
    return torch.where(counted > 1, epsilon / (counted - 1 + 1e-6), 0.0), counted


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        target: Tensor,
        allowed: Tensor | None,
        options: tuple[float, bool, int],
        *features: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        epsilon, count_correct, max_kept = options
        shape, words = (len(features), len(target)), weight.size(0)
        loss, nll, norms = (weight.new_empty(shape, dtype=torch.float32) for _ in range(3))
        correct = target.new_zeros(shape, dtype=torch.bool)
        ctx.kept = {}
        for block in _blocks(*shape, words):
            layer, tokens = block.layer, slice(block.start, block.end)
            wanted = target[tokens].unsqueeze(-1)
            logits = F.linear(features[layer][tokens], weight)  # [T, V]
            mask = None if allowed is None else allowed[tokens]
            scores = logits.float()
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            norm = scores.logsumexp(-1, keepdim=True)  # [T, 1]
            likelihood = norm - scores.gather(-1, wanted)
            smooth = likelihood
            if epsilon > 0:
                eps, count = _eps(epsilon, mask, words)
                total = scores if mask is None else scores.masked_fill(~mask, 0.0)
                others = count * norm - total.sum(-1, keepdim=True)
                smooth = (1 - epsilon - eps) * likelihood + eps * others
            loss[layer, tokens], nll[layer, tokens] = smooth.squeeze(-1), likelihood.squeeze(-1)
            norms[layer, tokens] = norm.squeeze(-1)
            if count_correct:
                correct[layer, tokens] = scores.argmax(-1).eq(target[tokens])
            max_kept -= logits.numel()
            if max_kept >= 0:
                ctx.kept[block] = logits
        ctx.save_for_backward(weight, target, allowed, norms, *features)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(nll, correct)
        return loss, nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Optional[Tensor], ...]:
        """``slope``: dL/dloss, [N, M]."""
        weight, target, allowed, norms, *features = ctx.saved_tensors
        words = weight.size(0)
        needed = ctx.needs_input_grad[4:]
        of_features = [torch.empty_like(x) if n else None for x, n in zip(features, needed)]
        of_weight: Optional[Tensor] = None
        for block in _blocks(len(features), len(target), words):
            layer, tokens = block.layer, slice(block.start, block.end)
            mask = None if allowed is None else allowed[tokens]
            logits = ctx.kept.pop(block, None)
            if logits is None:
                logits = F.linear(features[layer][tokens], weight)
            by = slope[layer, tokens].unsqueeze(-1)  # [T, 1]
            logits = _slopes(
                logits.float(), norms[layer, tokens].unsqueeze(-1), target[tokens].unsqueeze(-1),
                by, mask, ctx.epsilon,
            ).to(weight.dtype)  # fmt: skip
            own = of_features[layer]
            if own is not None:
                torch.mm(logits, weight, out=own[tokens])
            if not ctx.needs_input_grad[0]:
                continue
            if of_weight is None:
                of_weight = logits.t() @ features[layer][tokens]
            else:
                of_weight.addmm_(logits.t(), features[layer][tokens])
        return of_weight, None, None, None, *of_features


def _slopes(
    logits: Tensor,
    norm: Tensor,
    target: Tensor,
    by: Tensor,
    allowed: Tensor | None,
    epsilon: float,
) -> Tensor:
    """Return the derivatives in the logits, written over them.

    With c = 1 - ε - ε_i the loss is c·(z - x_t) + ε_i·Σ_v (z - x_v), where z is the norm. Its
    derivative in x_v is c·(p_v - [v = t]) + ε_i·(W·p_v - 1), with W the number of allowed words.

    Args:
        logits: float32 [T, V].
        norm, target, by: [T, 1]; ``by`` multiplies the derivatives.
        allowed: Bool [T, V] or None.
    """
    eps, words = _eps(epsilon, allowed, logits.size(-1))
    probability = logits.sub_(norm).exp_()
    slopes = probability.mul_(by * (1 - epsilon - eps + eps * words)).sub_(by * eps)
    slopes.scatter_add_(-1, target, -by * (1 - epsilon - eps))
    return slopes if allowed is None else slopes.masked_fill_(~allowed, 0.0)

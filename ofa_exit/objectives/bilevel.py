"""The gradient of loss weights through one step of what they train (bi-level optimisation)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jvp

Parameters = Mapping[str, Tensor]


def look_ahead(
    inner: Callable[[Parameters], Tensor],
    outer: Callable[[Parameters], Tensor],
    parameters: Parameters,
    weights: Tensor,
    step: float,
) -> tuple[Tensor, Tensor]:
    """Return the inner losses, and the gradient of the outer loss in their weights.

    The weights w of the inner losses t_k(φ) make one step of gradient descent, and the outer loss
    says how good it was:

        φ' = φ - ξ·∇_φ Σ_k w_k·t_k(φ)
        ∂ outer(φ') / ∂w_k = -ξ·⟨∇_φ t_k(φ), ∇_φ' outer(φ')⟩

    This is exact. The products are one derivative of all t_k in one direction, in forward mode, so
    that no second derivatives are stored.

    Args:
        inner: the K losses t of parameters, [K].
        outer: the loss of parameters by which weights are judged, scalar.
        parameters: φ by name. Those that do not matter to a loss may be among them.
        weights: w, [K].
        step: ξ.

    Returns: t(φ) and the gradient, [K] each.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    losses = inner(leaves)
    moved = {
        name: (value if slope is None else value - step * slope).detach().requires_grad_()
        for (name, value), slope in zip(leaves.items(), _slopes(weights @ losses, leaves))
    }
    direction = {
        name: torch.zeros_like(value) if slope is None else slope
        for (name, value), slope in zip(moved.items(), _slopes(outer(moved), moved))
    }
    with torch.no_grad():
        point = {name: value.detach() for name, value in leaves.items()}
        change = jvp(inner, (point,), (direction,))[1]  # [K]
    return losses.detach(), -step * change


def _slopes(loss: Tensor, parameters: Parameters) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

"""The gradient of loss weights through one step, against second derivatives and differences."""

import pytest
import torch
from torch import Tensor

from ofa_exit.objectives.bilevel import look_ahead

DATA, HELD_OUT = torch.randn(6, 4).double(), torch.randn(5, 4).double()


def parameters() -> dict[str, Tensor]:
    return {
        "weight": torch.randn(3, 4).double(),
        "bias": torch.randn(3).double(),
        "unused": torch.randn(2).double(),
    }


def losses(values: dict[str, Tensor], data: Tensor = DATA) -> Tensor:
    """Three losses that depend on all parameters, and not linearly; the last on the bias alone."""
    logits = (data @ values["weight"].t() + values["bias"]).log_softmax(-1)
    return torch.stack(
        [-logits[:, 0].mean(), logits[:, 1].square().mean(), values["bias"].exp().sum()]
    )


def held_out(values: dict[str, Tensor]) -> Tensor:
    return losses(values, HELD_OUT)[:2].mean()


def after_a_step(values: dict[str, Tensor], weights: Tensor, step: float) -> Tensor:
    """The outer loss as a differentiable function of the weights."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    names = ["weight", "bias"]
    slopes = torch.autograd.grad(
        weights @ losses(leaves), [leaves[name] for name in names], create_graph=True
    )
    moved = {name: leaves[name] - step * slope for name, slope in zip(names, slopes)}
    return held_out({**leaves, **moved})


@pytest.mark.parametrize("step", [0.01, 0.5])
def test_gradient_equals_that_of_second_derivatives_and_of_differences(step):
    values, weights = parameters(), torch.tensor([0.5, 1.5, 1.0]).double()
    found, slopes = look_ahead(losses, held_out, values, weights, step)
    torch.testing.assert_close(found, losses(values))

    leaf = weights.clone().requires_grad_()
    (expected,) = torch.autograd.grad(after_a_step(values, leaf, step), leaf)
    torch.testing.assert_close(slopes, expected)
    for k in range(3):
        shift = torch.zeros(3).double()
        shift[k] = 1e-5
        sides = [after_a_step(values, weights + sign * shift, step).item() for sign in (1, -1)]
        assert slopes[k].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


def test_nothing_is_changed():
    values = parameters()
    before = {name: value.clone() for name, value in values.items()}
    look_ahead(losses, held_out, values, torch.ones(3).double(), 0.1)
    assert all(torch.equal(values[name], before[name]) for name in values)
    assert not any(value.requires_grad for value in values.values())

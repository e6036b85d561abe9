"""The learned loss weights of leebert_loss: their updates, their type and what is saved."""

import copy
import math

import pytest
import torch
from helpers.exit_samples import model, sample
from helpers.leebert_samples import Optimizer, prepared, set_alpha

from ofa_exit.plugin.criterions.loss_weights import LossWeights


def test_the_weights_are_updated_by_their_own_adam():
    built, batch = model(), sample(4)
    loss = prepared(built, learned_weights="cross", weights_interval=2, weights_lr=0.01)
    alpha = loss.loss_weights.alpha
    reference = torch.nn.Parameter(alpha.clone())
    adam = torch.optim.Adam([reference], lr=0.01)
    for update in range(5):
        built.num_updates = update
        before = alpha.clone()
        for _ in range(2):  # two batches of one update add their gradients
            loss(built, batch)
        assert (alpha.grad is None) == bool(update % 2)
        if alpha.grad is not None:
            reference.grad = alpha.grad.clone()
            adam.step()
        loss.optimizer_step(Optimizer(), update)
        assert alpha.grad is None
        assert torch.equal(alpha, reference)
        assert torch.equal(alpha, before) == bool(update % 2)
    assert loss.loss_weights().mean().item() == pytest.approx(1)


def test_skipped_updates_leave_no_gradient():
    """fairseq skips an update with overflows, and begins each by criterion.train()."""
    built, batch = model(), sample(4)
    loss = prepared(built, learned_weights="cross")
    loss(built, batch)
    expected = loss.loss_weights.alpha.grad.clone()
    loss.loss_weights.add_gradient(torch.full((9,), math.nan))
    loss.train()
    loss(built, batch)
    assert torch.equal(loss.loss_weights.alpha.grad, expected)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights_finite(broken):
    weights = LossWeights(3, 0.1)
    weights.add_gradient(torch.tensor([broken, 1.0, 2.0]))
    weights.step()
    assert torch.equal(weights(), torch.ones(3))
    weights.add_gradient(torch.tensor([3.0, 1.0, 2.0]))
    weights.step()
    assert weights().isfinite().all() and weights()[0] < weights()[1]


def test_fairseqs_optimizer_does_not_see_the_weights():
    loss = prepared(model(), learned_weights="cross")
    assert [p.requires_grad for p in loss.parameters()] == [False]
    assert not list(prepared(model(), learned_weights="none").parameters())


def test_the_weights_stay_in_float32():
    built, batch = model(), sample(4)
    loss = prepared(built, learned_weights="cross")
    set_alpha(loss)
    loss(built, batch)
    expected = loss.loss_weights.alpha.grad.clone()
    half = built.half()
    batch["net_input"]["patch_images"] = batch["net_input"]["patch_images"].half()
    loss.half()
    loss.loss_weights.alpha.grad = None
    loss(half, batch)[0].backward()
    found = loss.loss_weights.alpha.grad
    assert found.dtype == loss.loss_weights.alpha.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-3)


def test_state_is_saved_with_that_of_adam():
    built, batch = model(), sample(4)
    one, other = (prepared(built, learned_weights="cross", weights_lr=0.01) for _ in range(2))
    for update in (0, 10):
        built.num_updates = update
        one(built, batch)
        one.optimizer_step(Optimizer(), update)
    other.load_state_dict(copy.deepcopy(one.state_dict()), strict=True)
    for loss in (one, other):
        loss(built, batch)
        loss.optimizer_step(Optimizer(), 10)
    assert torch.equal(one.loss_weights.alpha, other.loss_weights.alpha)
    other.load_state_dict(None)  # a checkpoint of another criterion
    assert torch.equal(one.loss_weights.alpha, other.loss_weights.alpha)

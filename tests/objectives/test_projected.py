"""Losses of projected states against ``token_cross_entropy`` and autograd."""

import pytest
import torch

from ofa_exit.objectives import projected
from ofa_exit.objectives.cross_entropy import token_cross_entropy
from ofa_exit.objectives.projected import projected_cross_entropy

LAYERS, M, C, V = 3, 7, 5, 23


def problem(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    weight = torch.randn(V, C).to(dtype).requires_grad_()
    features = [torch.randn(M, C).to(dtype).requires_grad_() for _ in range(LAYERS)]
    target = torch.randint(V, (M,))
    allowed = torch.rand(M, V) < 0.4
    allowed[torch.arange(M), target] = True
    allowed[2] = False
    allowed[2, target[2]] = True  # a single word
    return weight, features, target, allowed


def slopes_of(loss):
    """Return another weight for every token, so that none is confused with another."""
    torch.manual_seed(9)
    return torch.rand(loss.shape) + 0.5


def gradients(loss, weight, features):
    (loss * slopes_of(loss)).sum().backward()
    found = [weight.grad, *(x.grad for x in features)]
    weight.grad = None
    for x in features:
        x.grad = None
    return found


def expected(weight, features, target, epsilon, allowed):
    pairs = [token_cross_entropy(x @ weight.t(), target, epsilon, allowed) for x in features]
    return tuple(torch.stack(part) for part in zip(*pairs))


@pytest.mark.parametrize("block", [2, M, 100], ids=["blocks", "layer", "large"])
@pytest.mark.parametrize("kept", [0, 2 * V, LAYERS * M * V], ids=["none", "some", "all"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("is_closed", [False, True])
def test_losses_and_gradients_are_those_of_autograd(monkeypatch, block, kept, epsilon, is_closed):
    monkeypatch.setattr(projected, "MAX_BLOCK", block * V)
    monkeypatch.setattr(projected, "MAX_KEPT_NUMBERS", kept)
    weight, features, target, allowed = problem()
    allowed = allowed if is_closed else None
    loss, nll = expected(weight, features, target, epsilon, allowed)
    reference = gradients(loss, weight, features)
    ours = projected_cross_entropy(features, weight, target, epsilon, allowed, count_correct=True)
    torch.testing.assert_close(ours.loss, loss)
    torch.testing.assert_close(ours.nll, nll)
    assert not ours.nll.requires_grad
    for mine, other in zip(gradients(ours.loss, weight, features), reference, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    for layer, x in enumerate(features):
        logits = x @ weight.t()
        if is_closed:
            logits = logits.masked_fill(~allowed, -torch.inf)
        assert ours.correct[layer].tolist() == logits.argmax(-1).eq(target).tolist()


def test_the_gradient_of_a_single_allowed_word_is_exactly_zero():
    weight, features, target, allowed = problem()
    loss = projected_cross_entropy(features, weight, target, 0.1, allowed).loss
    loss[:, 2].sum().backward()
    assert weight.grad.abs().max() == 0 and features[0].grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_compute_losses_in_float32(dtype):
    weight, features, target, _ = problem(dtype=dtype)
    loss, _ = expected(weight, features, target, 0.1, None)
    reference = gradients(loss, weight, features)
    ours = projected_cross_entropy(features, weight, target, 0.1)
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss, loss, rtol=1e-3, atol=1e-3)
    for mine, other in zip(gradients(ours.loss, weight, features), reference, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other, rtol=0.03, atol=0.03)


def test_small_gradients_survive_half_types_under_a_loss_scale():
    """ε_i of many words is below float16's numbers unless the scale multiplies it first."""
    words, scale = 50_000, 2.0**12
    weight = torch.zeros(words, 4, dtype=torch.float16)
    weight[7] = 10.0  # the target is certain
    weight.requires_grad_()
    features = [torch.ones(1, 4, dtype=torch.float16, requires_grad=True)]
    loss = projected_cross_entropy(features, weight, torch.tensor([7]), 0.002).loss
    (scale * loss.sum()).backward()
    eps = 0.002 / (words - 1)
    assert float(torch.tensor(eps, dtype=torch.float16)) != pytest.approx(eps, rel=0.3)
    assert weight.grad[3, 0].item() == pytest.approx(-scale * eps, rel=1e-2)


def test_autocast_projects_in_its_type():
    weight, features, target, _ = problem()
    with torch.autocast("cpu", torch.bfloat16):
        ours = projected_cross_entropy(features, weight, target, 0.1).loss
        loss, _ = expected(weight, features, target, 0.1, None)
    reference = gradients(loss, weight, features)
    torch.testing.assert_close(ours, loss, rtol=1e-3, atol=1e-3)
    mine = gradients(ours, weight, features)
    assert mine[0].dtype == torch.float32
    torch.testing.assert_close(mine[0], reference[0], rtol=0.03, atol=0.03)


def test_a_frozen_matrix_and_frozen_layers_get_no_gradient():
    weight, features, target, _ = problem()
    weight.requires_grad_(False)
    features[1].requires_grad_(False)
    projected_cross_entropy(features, weight, target, 0.1).loss.sum().backward()
    assert weight.grad is None and features[1].grad is None
    assert features[0].grad is not None


def test_a_second_backward_pass_computes_the_logits_again():
    weight, features, target, _ = problem()
    loss = projected_cross_entropy(features, weight, target, 0.1).loss.sum()
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    weight.grad = None
    loss.backward()
    torch.testing.assert_close(weight.grad, first)


def test_nothing_is_kept_without_gradients():
    weight, features, target, _ = problem()
    with torch.no_grad():
        loss = projected_cross_entropy(features, weight, target, 0.1).loss
    assert loss.grad_fn is None

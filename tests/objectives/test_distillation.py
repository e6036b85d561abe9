"""Distillation between layers: who teaches whom, and the divergence against a loop."""

import pytest
import torch
from helpers.slow_losses import divergences

from ofa_exit.objectives.distillation import Distillation, distillation_loss, teachers


def test_who_teaches_whom():
    assert teachers("none", [1, 3, 6], 6) == {}
    assert teachers("final", [1, 3, 6], 6) == {1: [6], 3: [6]}
    assert teachers("final", [6], 6) == {}
    assert teachers("mutual", [1, 3, 6], 6) == {1: [3, 6], 3: [1, 6], 6: [1, 3]}
    # A last layer that is not trained teaches all the same.
    assert teachers("mutual", [1, 3], 6) == {1: [3, 6], 3: [1, 6]}
    with pytest.raises(ValueError, match="'all'; choose from none, final, mutual"):
        teachers("all", [1], 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_and_gradient_equal_a_loop(masked, temperature):
    student, teacher = torch.randn(5, 9, requires_grad=True), torch.randn(5, 9) * 3
    allowed = torch.rand(5, 9) < 0.4
    allowed[:, 0] = True
    mask = allowed if masked else None
    loss = Distillation("final", temperature).loss(student, teacher, mask)
    tokens = {"target": [0] * 5, "allowed": list(allowed) if masked else None, "confidence": None}
    slow = divergences(teacher, student, tokens, temperature)
    assert loss.tolist() == pytest.approx([float(x) for x in slow], rel=1e-4, abs=1e-6)
    (ours,) = torch.autograd.grad(loss.sum(), student)
    (expected,) = torch.autograd.grad(sum(slow), student)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    if masked:
        assert (ours[~allowed] == 0).all()


def test_high_temperatures_compare_logits():
    """T²·KL goes to half the variance of the logits' difference (Hinton et al. 2015)."""
    student, teacher = torch.randn(4, 7).double(), torch.randn(4, 7).double()
    loss = distillation_loss(student, teacher, "final_to_exit", temperature=30.0)
    expected = (student - teacher).var(-1, unbiased=False) / 2
    torch.testing.assert_close(loss, expected.float(), rtol=0.1, atol=1e-2)


def test_parts_are_weighted():
    label, distilled = torch.tensor(2.0), [torch.tensor(3.0), torch.tensor(5.0)]
    rule = Distillation("mutual", weight=0.5, label_weight=0.1)
    assert rule.combine(label, distilled).item() == pytest.approx(0.1 * 2 + 0.5 * 8)
    assert rule.combine(label, []) is label

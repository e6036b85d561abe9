"""BLIPEE's losses against loops written from Eqs. 2 to 5."""

import math

import pytest
import torch
from torch.nn.functional import kl_div

from ofa_exit.heads.base import parse_exit_layers
from ofa_exit.objectives.adversarial import (
    count_correct,
    feature_classifier_loss,
    frozen_scores,
    generator_loss,
    relative_spread,
)
from ofa_exit.objectives.distillation import distillation_loss
from ofa_exit.plugin.criterions.feature_classifiers import FeatureClassifier


def test_adversarial_losses_follow_the_paper():
    final, leaving = torch.randn(2, 9)
    d_final, d_exit = final.sigmoid().tolist(), leaving.sigmoid().tolist()
    fc = [-math.log(a) - math.log(1 - b) for a, b in zip(d_final, d_exit)]
    assert feature_classifier_loss(final, leaving).tolist() == pytest.approx(fc, rel=1e-5)
    gen = [-math.log(b) for b in d_exit]
    assert generator_loss(leaving).tolist() == pytest.approx(gen, rel=1e-5)
    right = sum(a > 0.5 for a in d_final) + sum(b <= 0.5 for b in d_exit)
    assert count_correct(final, leaving) == right


def test_extreme_scores_stay_finite():
    far = torch.tensor([-1e4, 1e4], dtype=torch.float16)
    assert feature_classifier_loss(far, far).isfinite().all()
    assert generator_loss(far).dtype == torch.float32


def test_the_classifier_follows_the_paper():
    classifier = FeatureClassifier(5)
    first, activation, last = classifier
    assert (first.out_features, last.out_features) == (3072, 1)
    assert isinstance(activation, torch.nn.LeakyReLU)
    assert classifier(torch.randn(2, 3, 5)).shape == (2, 3)


def test_generator_gradients_reach_features_only():
    classifier, features = FeatureClassifier(5, 7), torch.randn(4, 5, requires_grad=True)
    scores = frozen_scores(classifier, features)
    torch.testing.assert_close(scores, classifier(features))
    generator_loss(scores).sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("direction", ["exit_to_final", "final_to_exit"])
def test_distillation_in_both_directions(direction, constrained):
    own, final = torch.randn(2, 6, 11) * 3
    allowed = None
    p, q = own.softmax(-1), final.softmax(-1)
    if constrained:
        allowed = torch.rand(6, 11) < 0.5
        allowed[:, 0] = True
        p, q = (x * allowed / (x * allowed).sum(-1, keepdim=True) for x in (p, q))
    if direction == "final_to_exit":
        p, q = q, p
    slow = [
        sum(a * math.log(a / b) for a, b in zip(*row) if a > 0)
        for row in zip(p.tolist(), q.tolist())
    ]
    own.requires_grad_()
    loss = distillation_loss(own, final, direction, allowed)
    assert loss.tolist() == pytest.approx(slow, rel=1e-4, abs=1e-6)
    if not constrained:
        library = kl_div(q.log(), p, reduction="none").sum(-1)
        torch.testing.assert_close(loss.detach(), library)
    loss.sum().backward()
    assert own.grad.isfinite().all() and own.grad.abs().sum() > 0


def test_equal_distributions_have_no_loss():
    logits = torch.randn(3, 8)
    assert distillation_loss(logits, logits + 5).abs().max() < 1e-6
    with pytest.raises(ValueError, match="choose from exit_to_final, final_to_exit"):
        distillation_loss(logits, logits, "sideways")


def test_spread_is_small_if_features_are_alike():
    final = torch.randn(50, 8)
    assert relative_spread(final, final) == 1
    assert relative_spread(final[:1] + 0.01 * final, final) < 0.001


def test_exit_layers():
    assert parse_exit_layers(None, 6) == parse_exit_layers(" ", 6) == []
    assert parse_exit_layers("4,1", 6) == [1, 4]
    assert parse_exit_layers("[2, 5]", 6) == [2, 5]
    for wrong in ("0", "6", "2,2", "two", "1;2"):
        with pytest.raises(ValueError, match="--exit-layers"):
            parse_exit_layers(wrong, 6)

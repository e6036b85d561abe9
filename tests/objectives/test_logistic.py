"""Newton's logistic regression against gradient descent, and the area under the curve."""

from __future__ import annotations

import math

import pytest
import torch

from ofa_exit.objectives.logistic import area_under_curve, fit_logistic


def descend(rows, labels, ridge, steps=6_000):
    """The minimum of the penalised loss by gradient descent, in plain Python."""
    size = len(rows[0]) + 1
    weights, rate = [0.0] * size, 1 / (ridge + 0.25 * sum(1 + sum(x * x for x in r) for r in rows))
    for _ in range(steps):
        gradient = [ridge * w for w in weights]
        for row, label in zip(rows, labels):
            inputs = [*row, 1.0]
            logit = sum(w * x for w, x in zip(weights, inputs))
            error = 1 / (1 + math.exp(-logit)) - label
            gradient = [g + error * x for g, x in zip(gradient, inputs)]
        weights = [w - rate * g for w, g in zip(weights, gradient)]
    return weights


@pytest.mark.parametrize("ridge", [0.1, 2.0])
def test_newton_finds_what_gradient_descent_does(ridge):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(25, 2, generator=generator)
    noise = 0.5 * torch.randn(25, generator=generator)
    labels = features[:, 0] - features[:, 1] + noise > 0.2
    weights, bias = fit_logistic(features, labels, ridge)
    expected = descend(features.tolist(), labels.tolist(), ridge)
    assert [*weights, bias] == pytest.approx(expected, abs=1e-5)
    assert weights[0] > 0.2 > 0 > weights[1]


def test_separable_and_equal_labels_stay_finite():
    features = torch.linspace(-3, 3, 60)[:, None]
    (weight,), bias = fit_logistic(features, features[:, 0] > 0, 1e-3)
    assert 5 < weight < 100 and abs(bias) < 1
    for labels in (torch.ones(60), torch.zeros(60)):
        (weight,), bias = fit_logistic(features, labels.bool())
        assert abs(weight) < 1e-6 and 2 < abs(bias) < 10 and (bias > 0) == bool(labels[0])


def test_far_apart_rows_do_not_overshoot():
    """A full Newton step would diverge from here."""
    features = torch.tensor([[-500.0], [-1.0], [1.0], [2.0], [800.0]])
    labels = torch.tensor([True, False, False, True, True])
    (weight,), bias = fit_logistic(features, labels, 0.01)
    assert math.isfinite(weight) and math.isfinite(bias)
    logits = torch.sigmoid(features[:, 0].double() * weight + bias)
    inputs = torch.stack([features[:, 0].double(), torch.ones(5).double()], 1)
    gradient = inputs.T @ (logits - labels.double()) + 0.01 * torch.tensor([weight, bias]).double()
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("features", "ridge", "message"),
    [
        (torch.zeros(0, 2), 1.0, "0 rows"),
        (torch.zeros(3, 2), 0.0, "ridge of 0"),
        (torch.tensor([[1.0], [math.nan]]), 1.0, "not finite"),
    ],
)
def test_what_has_no_minimum_is_rejected(features, ridge, message):
    with pytest.raises(ValueError, match=message):
        fit_logistic(features, torch.ones(len(features)).bool(), ridge)


def test_the_area_counts_pairs():
    generator = torch.Generator().manual_seed(2)
    scores = torch.randint(0, 6, (40,), generator=generator)
    labels = torch.rand(40, generator=generator) < 0.4
    pairs = [
        1.0 if one > other else 0.5 if one == other else 0.0
        for one in scores[labels].tolist()
        for other in scores[~labels].tolist()
    ]
    assert area_under_curve(scores.float(), labels) == pytest.approx(sum(pairs) / len(pairs))
    assert area_under_curve(torch.arange(4.0), torch.tensor([0, 0, 1, 1]).bool()) == 1
    assert math.isnan(area_under_curve(scores.float(), torch.ones(40).bool()))

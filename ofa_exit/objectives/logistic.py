"""Logistic regression by Newton's method, for gates of a handful of numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_STEPS = 100
SMALLEST_STEP = 1e-10  # of Newton's step, below which the line search gives up
CONVERGED = 1e-9  # largest entry of the gradient, per row


def logistic_loss(weights: Tensor, features: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """Return Σ log(1 + exp(z)) - y·z + ridge/2·‖w‖² with z = features · w.

    Args:
        weights: float64 [F]. features: float64 [M, F]. labels: float64 [M], 0 or 1.
    """
    logits = features @ weights
    return (F.softplus(logits) - labels * logits).sum() + 0.5 * ridge * weights @ weights


def fit_logistic(features: Tensor, labels: Tensor, ridge: float = 1.0) -> tuple[list[float], float]:
    """Return the weights and the bias of p(y = 1) = sigmoid(features · weights + bias).

    They minimise ``logistic_loss`` over the features and a constant one, in float64. Each step
    solves (Xᵀ·S·X + ridge·I)·d = gradient with S = p·(1 - p) (iteratively reweighted least
    squares), and is halved until the loss falls.

    Args:
        features: [M, F] of similar scale. labels: Bool [M].
        ridge: penalty on weights and bias. It keeps them finite where the labels are separable.

    Raises:
        ValueError: no rows, a ridge that is not positive, or a feature that is not finite.
    """
    if len(features) == 0 or not ridge > 0:
        raise ValueError(f"{len(features)} rows with a ridge of {ridge}: give more than 0 of both")
    inputs = F.pad(features.double(), (0, 1), value=1.0)  # [M, F + 1], the constant last
    if not inputs.isfinite().all():
        raise ValueError("a feature is not finite")
    wanted = labels.double()
    weights = inputs.new_zeros(inputs.size(1))
    loss = logistic_loss(weights, inputs, wanted, ridge)
    penalty = ridge * torch.eye(len(weights), dtype=inputs.dtype)
    for _ in range(MOST_STEPS):
        probabilities = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (probabilities - wanted) + ridge * weights
        if gradient.abs().max() <= CONVERGED * len(inputs):
            break
        spread = probabilities * (1 - probabilities)
        hessian = inputs.T @ (spread[:, None] * inputs) + penalty
        direction = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while size >= SMALLEST_STEP:
            moved = weights - size * direction
            moved_loss = logistic_loss(moved, inputs, wanted, ridge)
            if moved_loss < loss:
                break
            size /= 2
        else:
            break  # no step lowers the loss any more
        weights, loss = moved, moved_loss
    *slopes, bias = weights.tolist()
    return slopes, bias


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Return the probability that a row of label 1 scores above one of label 0; ties count half.

    Args:
        scores: [M]. labels: Bool [M].

    Returns: NaN where all labels are equal.
    """
    positive = int(labels.sum())
    negative = len(labels) - positive
    if positive == 0 or negative == 0:
        return math.nan
    # Ranks from 1; equal scores share the mean of theirs.
    _, group, sizes = scores.double().unique(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0)
    ranks = (ends - (sizes - 1) / 2)[group]  # [M]
    above = ranks[labels].sum().item() - positive * (positive + 1) / 2
    return above / (positive * negative)

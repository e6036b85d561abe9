"""Learn-then-Test against slow oracles, and its promise on simulated data."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from ofa_exit.evaluation.calibration import statistics as ltt


def slow_p_value(losses: int, rows: int, bound: Fraction) -> float:
    """Return the p-value of 0/1 losses, the binomial sum in exact fractions."""
    below = sum(
        math.comb(rows, k) * bound**k * (1 - bound) ** (rows - k) for k in range(losses + 1)
    )
    mean = min(Fraction(losses, rows), bound)
    kl = 0.0
    for p, q in ((mean, bound), (1 - mean, 1 - bound)):
        kl += float(p) * math.log(p / q) if p else 0
    return min(1.0, math.e * float(below), math.exp(-rows * kl))


@pytest.mark.parametrize("rows", [1, 7, 40, 300])
@pytest.mark.parametrize("bound", [Fraction(1, 50), Fraction(1, 10), Fraction(2, 3)])
def test_p_values_of_whole_losses(rows, bound):
    for losses in {0, 1, rows // 10, rows // 2, rows}:
        found = ltt.hb_p_value(losses / rows, rows, float(bound))
        assert found == pytest.approx(slow_p_value(losses, rows, bound), rel=1e-9)


def test_p_values_of_fractional_losses_round_the_count_up():
    assert ltt.hb_p_value(0.021, 100, 0.1) == pytest.approx(
        min(math.e * sum(math.comb(100, k) * 0.1**k * 0.9 ** (100 - k) for k in range(4)),
            math.exp(-100 * ltt.bernoulli_kl(0.021, 0.1)))
    )  # fmt: skip


def test_p_values_at_the_ends():
    assert ltt.hb_p_value(0.0, 50, 0.0) == 1 and ltt.hb_p_value(0.0, 0, 0.1) == 1
    assert ltt.hb_p_value(0.5, 50, 0.1) == 1 and ltt.hb_p_value(0.5, 50, 1.0) == 0


@pytest.mark.parametrize("mean", [0.0, 0.01, 0.05])
def test_p_values_fall_as_the_bound_grows(mean):
    values = [ltt.hb_p_value(mean, 200, bound) for bound in np.linspace(0.001, 0.999, 400)]
    assert values == sorted(values, reverse=True)


def passes(share, rows, keep, confidence, right, own) -> bool:
    """Calibrate on rows whose losses are all this share of the bound."""
    full = None if right is None else np.full(rows, right)
    losses, costs = np.zeros((2, rows)), np.array([[1.0], [0.5]]).repeat(rows, axis=1)
    for _ in range(2):  # the first one only says the bound
        found = ltt.calibrate(losses, costs, keep, confidence, full, own_counts=own)
        losses[1] = share * found.bound
    return found.chosen is not None


@pytest.mark.parametrize("right", [None, 0.6])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("keep", "confidence"), [(0.96, 0.95), (0.9, 0.95), (0.5, 0.8)])
def test_rows_to_pass_without_a_loss_is_the_first_number_that_passes(keep, confidence, right, own):
    """By calibrating on one row, on two, …"""
    rows = next(n for n in range(2, 999) if passes(0, n, keep, confidence, right, own))
    assert ltt.rows_to_pass(0, keep, confidence, right, own_counts=own) == rows


@pytest.mark.parametrize("right", [None, 0.6])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_rows_to_pass_with_a_loss_pass_and_one_less_does_not(share, right):
    rows = ltt.rows_to_pass(share, 0.96, 0.95, right, is_relative=True)
    assert passes(share, rows, 0.96, 0.95, right, False)
    assert not passes(share, rows - 1, 0.96, 0.95, right, False)
    assert ltt.rows_to_pass(share, 0.96, 0.95, right, is_relative=True, failing=rows - 1) == rows


def test_no_number_of_rows_passes_at_the_bound():
    assert ltt.rows_to_pass(0.04, 0.96, 0.95) == math.inf
    assert ltt.rows_to_pass(0.03, 0.96, 0.95, 0.6) == math.inf  # the bound is 0.024
    assert ltt.rows_to_pass(0.0, 0.96, 0.95, 0.0) == math.inf
    assert ltt.rows_to_pass(0.0, 1.0, 0.95) == math.inf
    assert ltt.rows_to_pass(0, 0.96, 0.95) == 111


def test_scores_that_count_ngrams_of_other_rows_bound_the_mean_by_the_test_rows():
    losses, costs = np.zeros((2, 90)), np.array([[1.0], [0.5]]).repeat(90, axis=1)
    finding, testing = ltt.split_rows(90)
    scores = np.full(90, 0.4)
    scores[finding] = 1.0
    both = ltt.calibrate(losses, costs, 0.9, 0.9, scores)
    own = ltt.calibrate(losses, costs, 0.9, 0.9, scores, own_counts=True)
    assert both.full_mean == pytest.approx(0.6) and own.full_mean == pytest.approx(0.4)
    assert own.full_lower == pytest.approx(ltt.lower_mean(scores[testing], 0.1 * ltt.MEAN_SHARE))
    assert own.bound == pytest.approx(0.1 * own.full_lower)
    assert own.bound < both.bound


def test_a_sequence_ends_at_the_first_that_fails():
    assert ltt.fixed_sequence([0.01, 0.05, 0.2, 0.0], 0.05) == 2
    assert ltt.fixed_sequence([0.2, 0.0], 0.05) == 0
    assert ltt.fixed_sequence([], 0.05) == 0
    assert ltt.fixed_sequence([0.0, math.nan], 0.05) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_path_is_the_set_that_nothing_beats(seed):
    """Against all pairs; a coarse grid makes ties."""
    draw = np.random.default_rng(seed)
    losses, costs = (draw.integers(0, 6, 30) / 5).tolist(), (draw.integers(0, 6, 30) / 5).tolist()

    def beats(a, b):
        if (losses[a], costs[a]) == (losses[b], costs[b]):
            return a < b
        return losses[a] <= losses[b] and costs[a] <= costs[b]

    front = {b for b in range(30) if costs[b] < 1 and not any(beats(a, b) for a in range(30))}
    path = ltt.pareto_path(losses, costs, 1.0)
    assert set(path) == front and len(path) == len(front)
    assert [costs[one] for one in path] == sorted((costs[one] for one in path), reverse=True)
    assert [losses[one] for one in path] == sorted(losses[one] for one in path)


@pytest.mark.parametrize("mean", [0.1, 0.6, 0.97])
def test_the_lower_bound_of_a_mean_is_rarely_above_it(mean):
    draw = np.random.default_rng(3)
    bounds = [ltt.lower_mean(draw.random(200) < mean, 0.1) for _ in range(200)]
    assert np.mean(np.array(bounds) > mean) <= 0.1
    assert np.mean(bounds) > mean - 0.1  # and not useless
    assert ltt.lower_mean(np.zeros(10), 0.1) == 0


def simulated(draw, rows: int, scores: bool):
    """Draw settings that err more the less they cost, around the bound, and their truth.

    Returns:
        losses and costs [S, N], the full scores or None, and the true expected loss, relative to
        the full model's expected score if there is one.
    """
    rates = np.array([0.0, 0.005, 0.02, 0.035, 0.045, 0.05, 0.1])
    right = draw.random(rows) < 0.7 if scores else np.ones(rows, dtype=bool)
    losses = ((draw.random((len(rates), rows)) < rates[:, None]) & right).astype(float)
    costs = np.linspace(1, 0.4, len(rates))[:, None].repeat(rows, axis=1)
    return losses, costs, right.astype(float) if scores else None, rates


@pytest.mark.parametrize("scores", [False, True])
def test_the_promise_is_broken_no_more_often_than_stated(scores):
    """400 simulated calibrations at 90 %: broken at most 10 % plus three standard errors."""
    draw, broken, chosen = np.random.default_rng(5), 0, 0
    for _ in range(400):
        losses, costs, full, rates = simulated(draw, 900, scores)
        found = ltt.calibrate(losses, costs, 0.96, 0.9, full, seed=int(draw.integers(1 << 30)))
        if found.chosen is not None:
            chosen += 1
            broken += rates[found.chosen.setting] > 0.04
            assert found.chosen.p_value <= found.level
    assert broken / 400 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 400)
    assert chosen > 360  # and it does choose


def test_nothing_passes_without_enough_rows():
    losses, costs, _, _ = simulated(np.random.default_rng(0), 60, False)
    found = ltt.calibrate(losses * 0, costs, 0.96, 0.95)
    assert found.chosen is None and found.passed == 0 and found.rows == 40


def test_rows_that_find_the_path_do_not_test():
    finding, testing = ltt.split_rows(100)
    assert sorted([*finding, *testing]) == list(range(100)) and len(finding) == 33
    assert not np.array_equal(finding, ltt.split_rows(100, seed=2)[0])

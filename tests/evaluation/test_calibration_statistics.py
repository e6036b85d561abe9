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


@pytest.mark.parametrize(("bound", "level"), [(0.04, 0.05), (0.1, 0.05), (0.02, 0.2), (0.5, 0.01)])
def test_rows_needed_is_the_first_number_that_can_pass(bound, level):
    """With a loss of 0, by counting up."""
    rows = next(n for n in range(1, 10_000) if ltt.hb_p_value(0, n, bound) <= level)
    assert ltt.rows_needed(bound, level) == rows
    for mean in (bound / 4, bound / 2):
        assert ltt.hb_p_value(mean, ltt.rows_needed(bound, level, mean), bound) <= level
    assert ltt.rows_needed(bound, level, bound) == math.inf
    assert ltt.rows_needed(0.0, level) == math.inf


def test_74_rows_for_96_percent():
    assert ltt.rows_needed(0.04, 0.05) == 74
    assert ltt.rows_in_file(74) == 111
    assert [ltt.rows_in_file(n) - ltt.path_rows(ltt.rows_in_file(n)) >= n for n in range(1, 99)]


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

"""Learn-then-Test (Angelopoulos et al. 2021): p-values, fixed-sequence testing, Pareto path.

As in CALM (Schuster et al. 2022), a setting λ has a loss per sentence in [0, 1], and the null
hypothesis is H_0(λ): E[L(λ)] > δ. Settings are tested along a path that other rows have found
(Pareto Testing, Laufer-Goldshtein et al. 2023).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import bdtr

PATH_SHARE = 1 / 3  # of the rows: they find the path, the others test along it
MEAN_SHARE = 0.2  # of the error probability: spent on the full model's mean score
SEED = 1
BISECTIONS = 50
MOST_ROWS = 10**12


def hb_p_value(mean_loss: float, rows: int, bound: float) -> float:
    """Return the Hoeffding-Bentkus p-value of H_0: E[L] > δ.

        p = min(1, exp(-n·kl(min(L̂, δ) ‖ δ)), e·P[Bin(n, δ) ≤ ⌈n·L̂⌉])

    kl is the divergence of two Bernoulli distributions (Bates et al. 2021, Theorem 4).

    Args:
        mean_loss: L̂, mean of n independent losses in [0, 1].
        rows: n.
        bound: δ, between 0 and 1.
    """
    if rows < 1 or bound <= 0:
        return 1.0
    if bound >= 1:
        return 0.0
    hoeffding = math.exp(-rows * bernoulli_kl(min(mean_loss, bound), bound))
    # Rounded first, so that 3.0000000001 is not 4.
    losses = math.ceil(round(rows * mean_loss, 9))
    bentkus = math.e * float(bdtr(min(losses, rows), rows, bound))
    return min(1.0, hoeffding, bentkus)


def bernoulli_kl(p: float, q: float) -> float:
    """Return kl(p ‖ q) of two Bernoulli distributions in nats, for 0 < q < 1."""
    first = p * math.log(p / q) if p > 0 else 0.0
    second = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return max(0.0, first + second)


def fixed_sequence(p_values: Sequence[float], level: float) -> int:
    """Return how many hypotheses are rejected: all before the first p-value above ``level``.

    The probability of a false rejection anywhere in the sequence is at most ``level``, whatever
    its length, if the order does not depend on the rows that are tested.
    """
    for number, p_value in enumerate(p_values):
        if not p_value <= level:  # NaN, too
            return number
    return len(p_values)


def pareto_path(losses: Sequence[float], costs: Sequence[float], full_cost: float) -> list[int]:
    """Return the settings that no other one beats in both loss and cost, the cheapest last.

    Of equal settings the first one is kept. Settings that do not save are left out.

    Args:
        losses, costs: means of each setting.
        full_cost: of the model without exits.
    """
    path: list[int] = []
    lowest = math.inf  # loss of the settings that cost less than those to come
    for number in sorted(range(len(costs)), key=lambda one: (costs[one], losses[one], one)):
        if costs[number] < full_cost and losses[number] < lowest:
            path.append(number)
            lowest = losses[number]
    return path[::-1]


def lower_mean(scores: np.ndarray, level: float) -> float:
    """Return a lower bound of the mean of scores in [0, 1], wrong with probability ``level``.

    It inverts ``hb_p_value`` for the losses 1 - score.
    """
    return lower_bound(float(np.mean(scores)), len(scores), level)


def lower_bound(mean: float, rows: int, level: float) -> float:
    """Return ``lower_mean`` of scores with this mean."""
    loss = 1 - mean
    low, high = loss, 1.0  # p-values are above level at low, and below at high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if hb_p_value(loss, rows, middle) <= level:
            high = middle
        else:
            low = middle
    return max(0.0, 1 - high)


@dataclass(frozen=True)
class Tested:
    """A setting on the path.

    Attributes:
        setting: its number.
        mean_loss, p_value: over the test rows.
        saved: 1 - cost / cost of full depth, over the test rows.
    """

    setting: int
    mean_loss: float
    p_value: float
    saved: float


@dataclass(frozen=True)
class Calibration:
    """The outcome of Learn-then-Test.

    Attributes:
        chosen: the last setting that passes; None if none does: full depth.
        bound: δ, which the expected loss stays below.
        level: largest p-value that passes.
        rows, path_rows: rows that tested, and rows that found the path.
        path: what was tested, from the most careful to the cheapest setting.
        passed: how many settings of the path passed.
        full_mean, full_lower: mean of the full model's scores and its lower bound, over all rows or
            with ``own_counts`` over the test rows; None without references.
    """

    chosen: Tested | None
    bound: float
    level: float
    rows: int
    path_rows: int
    path: list[Tested] = field(repr=False)
    passed: int
    full_mean: float | None = None
    full_lower: float | None = None


def split_rows(rows: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that find the path and those that test, drawn at random."""
    order = np.random.default_rng(seed).permutation(rows)
    count = path_rows(rows)
    return np.sort(order[:count]), np.sort(order[count:])


def path_rows(rows: int) -> int:
    """Return how many of ``rows`` find the path."""
    return round(rows * PATH_SHARE)


def error_level(confidence: float, has_scores: bool) -> float:
    """Return the largest p-value that passes: what the full model's mean leaves of 1 - c."""
    return (1 - confidence) * (1 - MEAN_SHARE if has_scores else 1)


def rows_to_pass(
    mean_loss: float,
    keep: float,
    confidence: float,
    full_mean: float | None = None,
    is_relative: bool = False,
    own_counts: bool = False,
    failing: int = 0,
) -> float:
    """Return how many rows let a setting of this mean loss pass; infinity if no number does.

    It is exact for a loss of 0. For others the p-value is no monotone function of the rows, and
    fewer may pass by luck.

    Args:
        mean_loss: L̂, or with ``is_relative`` L̂ / δ.
        keep, confidence, full_mean: see ``calibrate`` and ``Calibration``.
        own_counts: see ``calibrate``.
        failing: a number of rows that does not pass.
    Returns:
        A number of rows of the file: those that find the path and those that test.
    """
    level = error_level(confidence, full_mean is not None)

    def passes(rows: int) -> bool:
        testing = rows - path_rows(rows)
        bound = 1 - keep
        if full_mean is not None:
            scored = testing if own_counts else rows
            bound *= lower_bound(full_mean, scored, (1 - confidence) * MEAN_SHARE)
        return hb_p_value(mean_loss * (bound if is_relative else 1), testing, bound) <= level

    largest = 1 if is_relative else (1 - keep) * (1 if full_mean is None else full_mean)
    if mean_loss >= largest or keep >= 1 or full_mean == 0:
        return math.inf
    low, high = failing, max(2 * failing, 1)
    while not passes(high):
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def calibrate(
    losses: np.ndarray,
    costs: np.ndarray,
    keep: float,
    confidence: float,
    full_scores: np.ndarray | None = None,
    seed: int = SEED,
    own_counts: bool = False,
) -> Calibration:
    """Choose the cheapest setting whose expected loss is at most δ, with probability c.

    δ = 1 - keep for consistency, whose losses are relative to the full model's answer. For losses
    that are drops of a reference metric, δ = (1 - keep)·m. m is a lower bound of the full model's
    mean score, which spends ``MEAN_SHARE`` of the error probability 1 - c.

    Args:
        losses: float [S, N] in [0, 1] of S settings and N sentences; setting 0 is full depth.
        costs: float [S, N].
        keep, confidence: share to keep, and c.
        full_scores: float [N] in [0, 1], the full model's scores; None for consistency.
        seed: of the split of the rows.
        own_counts: the scores count n-grams of the rows that find the path, as CIDEr-D does. These
            rows' own scores then depend on each other, and only the test rows bound the mean.
    """
    finding, testing = split_rows(losses.shape[1], seed)
    level = error_level(confidence, full_scores is not None)
    bound = 1 - keep
    full_mean = full_lower = None
    if full_scores is not None:
        scored = full_scores[testing] if own_counts else full_scores
        full_mean = float(np.mean(scored))
        full_lower = lower_mean(scored, (1 - confidence) * MEAN_SHARE)
        bound *= full_lower
    order = pareto_path(
        losses[:, finding].mean(axis=1).tolist(),
        costs[:, finding].mean(axis=1).tolist(),
        float(costs[0, finding].mean()),
    )
    full_cost = float(costs[0, testing].mean())
    path = []
    for setting in order:
        mean = float(losses[setting, testing].mean())
        p_value = hb_p_value(mean, len(testing), bound)
        saved = 1 - float(costs[setting, testing].mean()) / full_cost
        path.append(Tested(setting, mean, p_value, saved))
    passed = fixed_sequence([one.p_value for one in path], level)
    return Calibration(
        path[passed - 1] if passed else None,
        bound,
        level,
        len(testing),
        len(finding),
        path,
        passed,
        full_mean,
        full_lower,
    )

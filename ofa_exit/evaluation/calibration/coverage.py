"""How often calibrated exits break their promise, beside the cheapest setting without a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ofa_exit.evaluation.calibration.statistics import calibrate, split_rows

Measure = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
"""From the rows that find the path to losses [S, N], and the full model's scores [N] if any."""


@dataclass(frozen=True)
class Coverage:
    """Means over random splits of the rows into calibration and held-out rows.

    Attributes:
        broken: share of splits whose setting loses more than δ on the held-out rows.
        broken_pool: the same over all rows, which stand for the population.
        saved: mean of 1 - cost / cost of full depth on the held-out rows.
        full_depth: share of splits without a setting that saves.
    """

    broken: float
    broken_pool: float
    saved: float
    full_depth: float


def coverage(
    measure: Measure,
    costs: np.ndarray,
    keep: float,
    confidence: float,
    images: Sequence[str] | None = None,
    splits: int = 200,
    calibration_share: float = 0.5,
    seed: int = 0,
    own_counts: bool = False,
) -> tuple[Coverage, Coverage]:
    """Return the coverage of ``calibrate``, and of the cheapest setting that seems good enough.

    The latter takes all calibration rows, and of the settings whose mean loss is at most δ the one
    that saves most. Unlike ``ofa-exit choose``, it counts no gain of a row against the loss of
    another. δ is 1 - keep, times the full model's mean score if there is one.

    Args:
        measure: called for each split, because CIDEr counts n-grams in the rows it gets.
        costs, own_counts: see ``calibrate``.
        images: of the rows. Those of one image come into the same part (default: all differ).
        calibration_share: of the images of each split.
    """
    names = np.arange(costs.shape[1]) if images is None else np.array(images)
    groups = np.unique(names, return_inverse=True)[1]
    draw = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float, float, float]]] = {"calibrated": [], "untested": []}
    for split in range(splits):
        order = draw.permutation(groups.max() + 1)
        is_given = np.isin(groups, order[: round(len(order) * calibration_share)])
        given, held_out = np.flatnonzero(is_given), np.flatnonzero(~is_given)
        losses, full = measure(given[split_rows(len(given), split)[0]])
        own = None if full is None else full[given]
        result = calibrate(
            losses[:, given], costs[:, given], keep, confidence, own, split, own_counts
        )
        scores = np.ones(losses.shape[1]) if full is None else full
        settings = {
            "calibrated": result.chosen.setting if result.chosen else 0,
            "untested": _cheapest(losses, costs, given, (1 - keep) * scores[given].mean()),
        }
        for name, setting in settings.items():
            broken, broken_pool = (
                float(losses[setting, part].mean() > (1 - keep) * scores[part].mean())
                for part in (held_out, np.arange(len(groups)))
            )
            saved = 1 - costs[setting, held_out].mean() / costs[0, held_out].mean()
            found[name].append((broken, broken_pool, float(saved), float(setting == 0)))
    means = [np.mean(values, axis=0).tolist() for values in found.values()]
    return Coverage(*means[0]), Coverage(*means[1])


def _cheapest(losses: np.ndarray, costs: np.ndarray, rows: np.ndarray, bound: float) -> int:
    """Return the cheapest setting whose mean loss is at most ``bound``; 0 is full depth."""
    good = np.flatnonzero(losses[:, rows].mean(axis=1) <= bound)
    return int(min(good, key=lambda one: costs[one, rows].mean(), default=0))

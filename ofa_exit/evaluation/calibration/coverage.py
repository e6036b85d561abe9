"""How often calibrated exits break their promise, beside the best setting on validation."""

from dataclasses import dataclass

import numpy as np

from ofa_exit.evaluation.calibration.statistics import calibrate


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
    losses: np.ndarray,
    costs: np.ndarray,
    keep: float,
    confidence: float,
    full_scores: np.ndarray | None = None,
    splits: int = 200,
    calibration_share: float = 0.5,
    seed: int = 0,
) -> tuple[Coverage, Coverage]:
    """Return the coverage of ``calibrate``, and of the cheapest setting that seems good enough.

    The latter takes all calibration rows, and of the settings whose mean loss is at most δ the one
    that saves most, as ``ofa-exit choose`` does. δ is 1 - keep, times the full model's mean score
    if there is one.

    Args:
        losses, costs, full_scores: see ``calibrate``.
        calibration_share: of the rows of each split.
    """
    rows = losses.shape[1]
    scores = np.ones(rows) if full_scores is None else full_scores
    draw = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float, float, float]]] = {"calibrated": [], "chosen": []}
    for split in range(splits):
        order = draw.permutation(rows)
        count = round(rows * calibration_share)
        given, held_out = order[:count], order[count:]
        own_scores = None if full_scores is None else full_scores[given]
        result = calibrate(losses[:, given], costs[:, given], keep, confidence, own_scores, split)
        settings = {
            "calibrated": result.chosen.setting if result.chosen else 0,
            "chosen": _cheapest(losses, costs, given, (1 - keep) * scores[given].mean()),
        }
        for name, setting in settings.items():
            broken, broken_pool = (
                float(losses[setting, part].mean() > (1 - keep) * scores[part].mean())
                for part in (held_out, order)
            )
            saved = 1 - costs[setting, held_out].mean() / costs[0, held_out].mean()
            found[name].append((broken, broken_pool, float(saved), float(setting == 0)))
    calibrated, chosen = (Coverage(*np.mean(values, axis=0).tolist()) for values in found.values())
    return calibrated, chosen


def _cheapest(losses: np.ndarray, costs: np.ndarray, rows: np.ndarray, bound: float) -> int:
    """Return the cheapest setting whose mean loss is at most ``bound``; 0 is full depth."""
    good = np.flatnonzero(losses[:, rows].mean(axis=1) <= bound)
    return int(min(good, key=lambda one: costs[one, rows].mean(), default=0))

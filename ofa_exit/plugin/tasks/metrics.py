"""Metrics over a whole split, from what batches and workers log; which of them is the best's."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fairseq.logging import metrics

from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)


def summed(logging_outputs: Sequence[dict[str, Any]], keys: Sequence[str]) -> Iterator[float]:
    """Yield the sum of each key over workers, as a plain number."""
    for key in keys:
        total = sum(output.get(key, 0) for output in logging_outputs)
        yield total.item() if torch.is_tensor(total) else total


def log_mean(
    name: str, logging_outputs: Sequence[dict[str, Any]], keys: Sequence[str], scale: float = 1
) -> None:
    """Log the mean over the whole split: ``scale`` times the sum, divided by the count.

    Args:
        keys: names of the sum and of the count in what ``validation_sums`` returns. If the count
            is 0, nothing is logged.
    """
    total, count = summed(logging_outputs, keys)
    if count:
        sums = f"_{name}"
        metrics.log_scalar(sums, np.array([total, count]))
        metrics.log_derived(
            name, lambda meters: round(scale * float(np.divide(*meters[sums].sum)), 3)
        )


def check_best_metric(
    metric: str, maximize: bool, own: Mapping[str, str], others: set[str], cfg: Any
) -> None:
    """Raise ValueError for a --best-checkpoint-metric that validation would not log.

    fairseq looks it up after the first validation. Metrics that only criterions log are not
    checked.

    Args:
        own: the task's metrics of generation: name → option that logs it. All are better if higher.
        others: those of all tasks.
    """
    if metric in own:
        if not getattr(cfg, own[metric]):
            raise ValueError(
                f"--best-checkpoint-metric {metric}: validation logs it with {flag(own[metric])}. "
                "Add that"
            )
        if not maximize:
            logger.warning(
                "--best-checkpoint-metric %s without --maximize-best-checkpoint-metric: the "
                "checkpoint with the lowest %s is kept as the best",
                *(metric, metric),
            )
    elif metric in others:
        logged = ", ".join(f"{name} ({flag(option)})" for name, option in own.items())
        raise ValueError(
            f"--best-checkpoint-metric {metric}: this task does not log it. Choose from {logged}, "
            "or loss"
        )

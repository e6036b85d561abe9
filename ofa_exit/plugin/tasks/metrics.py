"""Metrics over a whole split, from what batches and workers log."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fairseq.logging import metrics


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

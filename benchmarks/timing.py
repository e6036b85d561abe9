"""Times of several variants that meet the same machine: each round runs every one of them once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm


def synchronise(device: str) -> None:
    """Waits until the device has done what it was given; the CPU always has."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int,
    device: str,
    what: str = "",
) -> dict[str, list[float]]:
    """Seconds of every run, a list of one number a round.

    The order turns by one with each round, so that none always follows the same one; ``warm_up``
    rounds come first and are not counted.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(warm_up + rounds), desc=what, leave=False, unit="round"):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = seconds_of(runs[name], device)
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: list[float], others: list[float]) -> float:
    """Median over the rounds of the time taken relative to another's in the same round."""
    return statistics.median(own / other for own, other in zip(seconds, others, strict=True))


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high

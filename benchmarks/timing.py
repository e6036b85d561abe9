"""Times of several variants that meet the same machine: each round runs every one of them once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.setting import Setting

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    # What all threads of this process computed: steadier where other programs share the machine.
    "cpu": time.process_time,
}


def synchronise(device: str) -> None:
    """Waits until the device has done what it was given; the CPU always has."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], setting: Setting) -> float:
    clock = CLOCKS[setting.clock]
    synchronise(setting.device)
    start = clock()
    run()
    synchronise(setting.device)
    return clock() - start


def rounds_of(
    names: Sequence[str], rounds: int, warm_up: int, what: str
) -> Iterator[tuple[bool, str]]:
    """(counted, name) of every run of all rounds.

    The order turns by one with each round, so that none always follows the same one; ``warm_up``
    rounds come first and do not count.
    """
    for number in tqdm(range(warm_up + rounds), desc=what, leave=False, unit="round"):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            yield number >= warm_up, name


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int, setting: Setting
) -> dict[str, list[float]]:
    """Seconds of every run, a list of one number a round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for counted, name in rounds_of(list(runs), rounds, warm_up, f"{setting}"):
        taken = seconds_of(runs[name], setting)
        if counted:
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

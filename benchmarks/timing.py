"""Interleaved timing: each round runs every variant once, so all meet the same machine."""

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
    # CPU time of all threads of this process: steadier on a shared machine.
    "cpu": time.process_time,
}


def synchronise(device: str) -> None:
    """Wait until the device is idle; the CPU always is."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_run(run: Callable[[], Any], setting: Setting) -> float:
    """Return the seconds of one run, on the setting's clock."""
    clock = CLOCKS[setting.clock]
    synchronise(setting.device)
    start = clock()
    run()
    synchronise(setting.device)
    return clock() - start


def schedule_rounds(
    names: Sequence[str], rounds: int, warm_up: int, what: str
) -> Iterator[tuple[bool, str]]:
    """Yield (counted, name) for every run of all rounds.

    The order rotates by one per round. ``warm_up`` rounds come first and do not count.
    """
    for number in tqdm(range(warm_up + rounds), desc=what, leave=False, unit="round"):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            yield number >= warm_up, name


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int, setting: Setting
) -> dict[str, list[float]]:
    """Return the seconds of every run, one number per round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for counted, name in schedule_rounds(list(runs), rounds, warm_up, f"{setting}"):
        elapsed = time_run(runs[name], setting)
        if counted:
            seconds[name].append(elapsed)
    return seconds


def ratio(seconds: list[float], others: list[float]) -> float:
    """Return the median over the rounds of the ratio of two times of the same round."""
    return statistics.median(own / other for own, other in zip(seconds, others, strict=True))


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high

"""Training samples per second and peak memory of MuE's loss over every layer.

A step is forward, backward and Adam on random weights, images and captions. Weights are float32.
Other types compute under autocast. Data loading is not part of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.options import device_parser, write_lines
from benchmarks.setting import Setting, build, sample
from benchmarks.timing import synchronise
from ofa_exit.plugin.criterions.mue import MuELoss
from ofa_exit.testing import random_tokens

COLUMNS = ("batch", "dtype", "samples_per_second", "seconds_per_step", "peak_mib", "loss")


def training_sample(setting: Setting) -> dict[str, Any]:
    """Return one batch for the criterion: captions of ``setting.steps`` words."""
    given = sample(replace(setting, dtype="float32"))
    shape = (setting.batch_size, setting.steps)
    target = random_tokens("target", shape, setting.vocabulary).to(setting.device)
    net_input = {k: v for k, v in given["net_input"].items() if k not in ("step_limit", "padded")}
    first = torch.zeros_like(target[:, :1])  # bos
    net_input["prev_output_tokens"] = torch.cat([first, target[:, :-1]], dim=1)
    return {
        **given,
        "net_input": net_input,
        "target": target,
        "ntokens": target.numel(),
        "nsentences": setting.batch_size,
    }


def measure(setting: Setting, steps: int) -> dict[str, Any]:
    """Train ``steps`` steps after two for warming up; return a line of the CSV."""
    model: Any = build(replace(setting, dtype="float32")).to(setting.device).train()
    task = Namespace(target_dictionary=model.decoder.dictionary)
    criterion = MuELoss(task, 0.1, "uniform", 0.0, 0, False, False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    batch, seconds = training_sample(setting), []
    dtype = getattr(torch, setting.dtype)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(steps + 2):
        synchronise(setting.device)
        start = time.perf_counter()
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
            loss = criterion(model, batch)[0] / batch["ntokens"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(setting.device)
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() / 2**20 if setting.device == "cuda" else None
    return {
        "batch": setting.batch_size,
        "dtype": setting.dtype,
        "samples_per_second": f"{setting.batch_size / step:.2f}",
        "seconds_per_step": f"{step:.4f}",
        "peak_mib": "" if peak is None else f"{peak:.0f}",
        "loss": f"{float(loss.detach()):.4f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    rows = []
    for size in options.batch_size:
        setting = Setting(
            arch=options.arch, image_size=options.image_size, batch_size=size,
            vocabulary=options.vocabulary, dtype=options.dtype, device=options.device,
        )  # fmt: skip
        try:
            rows.append(measure(setting, options.steps))
        except torch.cuda.OutOfMemoryError:
            rows.append({"batch": size, "dtype": options.dtype, "peak_mib": "out of memory"})
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
    write_lines(options.csv, COLUMNS, rows)
    return 0


def parser() -> argparse.ArgumentParser:
    return device_parser("benchmarks.training", __doc__, 5, "timed steps")


if __name__ == "__main__":
    sys.exit(main())

"""Time and peak memory of a training step by its loss: OFA's own, MuE's, and others.

``autograd`` is MuE's loss computed layer by layer, as that of exits with heads of their own.

A step is forward, backward and Adam on random weights, images and captions. Weights are float32.
Other types compute under autocast. Data loading is not part of it. The losses take turns, so all
meet the same machine. Peak memory is above that of the model and Adam's averages, and includes
gradients.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.memory import peak_above
from benchmarks.options import device_parser, write_lines
from benchmarks.setting import Setting, build, sample
from benchmarks.timing import CLOCKS, interleaved, ratio
from ofa_exit.plugin.criterions.mue import ExitBatch, MuELoss
from ofa_exit.testing import random_tokens

LOSSES: dict[str, dict[str, Any]] = {
    "last": {"layer_weights": "last"},
    "uniform": {"layer_weights": "uniform"},
    "autograd": {"layer_weights": "uniform"},
    "self_distil": {"layer_weights": "uniform", "self_distil": 0.5},
}
COLUMNS = (
    "batch", "dtype", "loss", "samples_per_second", "seconds_per_step", "time_of_last",
    "peak_mib", "memory_of_last", "loss_per_token",
)  # fmt: skip


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


class LayerByLayer(MuELoss):
    def shared_words(self, model: Any, batch: ExitBatch) -> None:
        """Return None, so that autograd keeps what it needs."""


class Steps:
    """Training steps of one model by any of ``LOSSES``."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = build(replace(setting, dtype="float32")).to(setting.device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        self.batch = training_sample(setting)
        self.values: dict[str, float] = {}

    def runs(self) -> dict[str, Callable[[], None]]:
        """Return a function that runs one step, by the name of its loss."""
        return {name: self._run(name) for name in LOSSES}

    def _run(self, name: str) -> Callable[[], None]:
        setting = self.setting
        task = Namespace(target_dictionary=self.model.decoder.dictionary)
        usual = {
            "label_smoothing": 0.1, "drop_worst_ratio": 0.0, "drop_worst_after": 0,
            "report_accuracy": False, "sentence_avg": False,
        }  # fmt: skip
        kind = LayerByLayer if name == "autograd" else MuELoss
        criterion = kind(task, **{**usual, **LOSSES[name]})
        dtype = getattr(torch, setting.dtype)

        def run() -> None:
            with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
                loss = criterion(self.model, self.batch)[0] / self.batch["ntokens"]
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.values.setdefault(name, float(loss.detach()))

        return run


def measure(setting: Setting, steps: int) -> list[dict[str, Any]]:
    """Train ``steps`` steps of each loss after two for warming up; return lines of the CSV."""
    training = Steps(setting)
    runs = training.runs()
    seconds = interleaved(runs, steps, warm_up=2, setting=setting)
    peaks = {}
    for name, run in runs.items():
        gc.collect()
        peaks[name] = peak_above(run, setting.device)
    rows = []
    for name in runs:
        step = statistics.median(seconds[name])
        rows.append(
            {
                "batch": setting.batch_size,
                "dtype": setting.dtype,
                "loss": name,
                "samples_per_second": f"{setting.batch_size / step:.2f}",
                "seconds_per_step": f"{step:.4f}",
                "time_of_last": f"{ratio(seconds[name], seconds['last']):.3f}",
                "peak_mib": f"{peaks[name] / 2**20:.0f}",
                "memory_of_last": f"{peaks[name] / max(peaks['last'], 1):.3f}",
                "loss_per_token": f"{training.values[name]:.4f}",
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for size in options.batch_size:
        setting = Setting(
            arch=options.arch, image_size=options.image_size, batch_size=size, clock=options.clock,
            vocabulary=options.vocabulary, dtype=options.dtype, device=options.device,
        )  # fmt: skip
        try:
            found = measure(setting, options.steps)
        except torch.cuda.OutOfMemoryError:
            found = [{"batch": size, "dtype": options.dtype, "peak_mib": "out of memory"}]
        for row in found:
            print(*(f"{key} {value}" for key, value in row.items()), sep=", ", flush=True)
        rows += found
    write_lines(options.csv, COLUMNS, rows)
    return 0


def parser() -> argparse.ArgumentParser:
    built = device_parser("benchmarks.training", __doc__, 5, "timed steps of each loss")
    shown = "(default %(default)s)"
    built.add_argument("--threads", type=int, default=1, help=f"of the CPU {shown}")
    built.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help=f"cpu: CPU time of the process {shown}",
    )
    return built


if __name__ == "__main__":
    sys.exit(main())

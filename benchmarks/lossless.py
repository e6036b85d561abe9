"""Time of lossless mode against greedy search at full depth, with forced acceptance.

Weights and inputs are pseudo-random, so drafts would never be right by themselves. Drafts are
computed as usual and then replaced: each is the word of full depth with the given probability,
independently, and another word otherwise. Every run draws a new pattern, the same for all
variants. Each round runs every variant once. The encoder runs once before them, and its time is
measured apart.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.setting import Hypotheses, Setting, build, generate, generator, prepare, sample
from benchmarks.timing import CLOCKS, interleaved, quartiles, ratio
from ofa_exit.models.archs import ARCHS
from ofa_exit.models.lossless import LosslessDecoding
from ofa_exit.runtime.drafts import Drafting

FULL, ENCODER = "full depth", "encoder"


class Bench:
    """One batch, encoded once, and the variants that decode it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = prepare(build(setting), setting)
        self.batch, self.search = sample(setting), generator(self.model, setting)
        self.model.configure_exits(None)
        self.expected = self.tokens(generate(self.search, self.batch))
        self.inputs = self.batch["net_input"]
        self.encoded = self.encode()
        self.model.encoder.forward_torchscript = lambda net_input: self.encoded
        self.seeds: dict[str, int] = {}
        self.counts: dict[str, list[tuple[int, int, int]]] = {}

    def encode(self) -> Any:
        """Run the encoder."""
        with torch.no_grad():
            return type(self.model.encoder).forward_torchscript(self.model.encoder, self.inputs)

    @staticmethod
    def tokens(hypotheses: Hypotheses) -> list[list[int]]:
        return [hyps[0]["tokens"].tolist() for hyps in hypotheses]

    def full(self) -> None:
        self.model.configure_exits(None)
        generate(self.search, self.batch)

    def lossless(self, drafting: Drafting, rate: float) -> Callable[[], None]:
        """Return a run with drafts that are right at a rate.

        Raises:
            RuntimeError: if a run gives other tokens than full depth.
        """
        name = variant_name(drafting, rate)

        def run() -> None:
            self.seeds[name] = self.seeds.get(name, 0) + 1
            self.model.configure_exits(None, drafting=drafting)
            self.encoded.trace = None
            with forced(self.expected, rate, self.seeds[name]) as rounds:
                found = self.tokens(generate(self.search, self.batch))
            if found != self.expected:
                raise RuntimeError(f"{name}: the tokens are not those of full depth")
            self.counts.setdefault(name, []).append(tuple(rounds))

        return run


@contextmanager
def forced(expected: list[list[int]], rate: float, seed: int) -> Iterator[list[int]]:
    """Make drafts right at a rate. Yields [drafted, accepted, rounds], which grow."""
    draws = random.Random(seed)
    length = max(map(len, expected))
    right = [[draws.random() < rate for _ in range(length)] for _ in expected]
    compute, counts = LosslessDecoding.guess, [0, 0, 0]
    step = LosslessDecoding.step

    def guess(self: Any, hidden: Any, prefixes: Any, choices: Any) -> list[int]:
        compute(self, hidden, prefixes, choices)
        drafts = []
        for row, prefix in enumerate(prefixes):
            place = len(prefix) - 1
            if place >= len(expected[row]):  # after a wrong draft in place of the end
                drafts.append(4)
                continue
            word = expected[row][place]
            is_right = right[row][place] and prefix[1:] == expected[row][:place]
            drafts.append(word if is_right else 4 + (word + 1) % 50)
        return drafts

    def counted(self: Any, *arguments: Any) -> Any:
        scores, trace = step(self, *arguments)
        for number, values in enumerate((trace.drafted, trace.accepted, trace.layers_run > 0)):
            counts[number] += int(values.sum())
        return scores, trace

    LosslessDecoding.guess, LosslessDecoding.step = guess, counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        LosslessDecoding.guess, LosslessDecoding.step = compute, step  # type: ignore[method-assign]


def variant_name(drafting: Drafting, rate: float) -> str:
    return f"layer {drafting.layer}, {drafting.tokens} tokens, {rate:.0%} right"


def rows(bench: Bench, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a line per variant: medians, and medians of ratios within rounds."""
    lines = []
    for name, own in seconds.items():
        low, middle, high = quartiles(own)
        line: dict[str, Any] = {
            **asdict(bench.setting),
            "variant": name,
            "rounds": len(own),
            "seconds": middle,
            "seconds_low": low,
            "seconds_high": high,
        }
        if name in bench.counts:
            drafted, accepted, passes = map(sum, zip(*bench.counts[name]))
            whole = [
                (encoder + full) / (encoder + mine)
                for encoder, full, mine in zip(seconds[ENCODER], seconds[FULL], own, strict=True)
            ]
            line["accepted_share"] = accepted / drafted
            line["words_per_round"] = (accepted + passes) / passes
            line["speedup_of_decoder"] = ratio(seconds[FULL], own)
            line["speedup_with_encoder"] = statistics.median(whole)
        lines.append(line)
    return lines


SHOWN = ("variant", "seconds", "seconds_low", "seconds_high", "accepted_share", "words_per_round",
         "speedup_of_decoder", "speedup_with_encoder")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    names = ("arch", "image_size", "batch_size", "steps", "vocabulary", "threads", "clock")
    setting = Setting(beam=1, joint=True, **{name: getattr(options, name) for name in names})
    bench = Bench(setting)
    runs: dict[str, Callable[[], Any]] = {ENCODER: bench.encode, FULL: bench.full}
    for layer in options.layers:
        for count in options.tokens:
            for rate in options.rates:
                drafting = Drafting(count, layer)
                runs[variant_name(drafting, rate)] = bench.lossless(drafting, rate)
    seconds = interleaved(runs, options.rounds, 1, setting)
    lines = rows(bench, seconds)
    print(f"{setting}, {setting.arch}, {setting.steps} steps, {setting.threads} threads, "
          f"{setting.clock} clock, medians of {options.rounds} rounds")  # fmt: skip
    table = [[line.get(name) for name in SHOWN] for line in lines]
    print(tabulate(table, SHOWN, tablefmt="plain", floatfmt=".3f"))
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(max(lines, key=len)))
            writer.writeheader()
            for line in lines:
                shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()}
                writer.writerow(shown)
    return 0


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(prog="python -m benchmarks.lossless", description=__doc__)
    add = built.add_argument
    shown = "(default %(default)s)"
    add("--arch", default="ofa_base", choices=list(ARCHS), help=f"model {shown}")
    add("--image-size", type=int, default=480, metavar="PIXELS", help=shown)
    add("--batch-size", type=int, default=1, help=shown)
    add("--steps", type=int, default=17, help=f"decoder calls, end of sentence included {shown}")
    add("--vocabulary", type=int, default=59457, help=f"size of the vocabulary {shown}")
    add("--layers", type=int, nargs="+", default=[1, 2, 3], help=f"that draft {shown}")
    add("--tokens", type=int, nargs="+", default=[4], help=f"drafted at a time {shown}")
    add("--rates", type=float, nargs="+", default=[0.7], help=f"of right drafts {shown}")
    add("--rounds", type=int, default=9, help=f"timed rounds {shown}")
    add("--threads", type=int, default=1, help=f"threads of torch {shown}")
    add("--clock", choices=list(CLOCKS), default="cpu",
        help=f"cpu: CPU time of this process, steadier on a busy machine {shown}")  # fmt: skip
    add("--csv", type=Path, metavar="FILE", help="write the numbers, one line per variant")
    return built


if __name__ == "__main__":
    sys.exit(main())

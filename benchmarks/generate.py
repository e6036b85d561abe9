"""Time and memory of generating one batch: this package, plain OFA, and the arithmetic alone.

Weights and inputs are pseudo-random and the same in every run; every hypothesis gets the same
number of tokens, so all variants do the same work. Encoder and reference are split (image and text
apart), since exits of image and text need that. Variants take turns within a round, and what is
compared are medians of ratios within rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.parts import parts_of
from benchmarks.report import Result, aligned, heading, parts_table, table, verdict, write_csv
from benchmarks.setting import Setting
from benchmarks.timing import interleaved
from benchmarks.variants import KINDS, Bench, Depths, Models, deviation, name_of
from ofa_exit.models.archs import ARCHS
from ofa_exit.policies.static import StaticExit

TOLERANCE = 1e-4
DEPTHS = ((6, 2, 3), (3, 3, 3), (2, 3, 2), (1, 1, 1))


def depths(text: str) -> Depths:
    """IMAGE,TEXT,DECODER as three numbers."""
    try:
        image, words, decoder = (int(number) for number in text.split(","))
        return StaticExit((image, words, decoder)).depths
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not IMAGE,TEXT,DECODER layers") from error


def numbers(text: str) -> list[int]:
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1,8") from error
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 1")
    return found


def check(models: Models, setting: Setting) -> float:
    """Largest difference of scores between full depth and the reference on the first batch size.

    Raises RuntimeError where tokens differ or scores by more than 1e-4.
    """
    bench = Bench(models, setting)
    worst = deviation(bench.ours(None)(), bench.reference())
    if worst > TOLERANCE:
        what = "tokens differ" if worst == float("inf") else f"scores differ by {worst:.2e}"
        raise RuntimeError(
            f"full depth is not the reference at batch {setting.batch_size}, beam {setting.beam}, "
            f"{setting.image_size} px: {what}; no time was taken"
        )
    return worst


def measure(
    models: Models,
    setting: Setting,
    kinds: Sequence[str],
    patterns: Sequence[Depths],
    rounds: int,
    warm_up: int,
    profile_rounds: int,
) -> list[Result]:
    """Times of every variant in one setting."""
    bench = Bench(models, setting)
    runs = bench.runs(kinds, patterns)
    what = f"batch {setting.batch_size}, beam {setting.beam}, {setting.image_size} px"
    seconds = interleaved(runs, rounds, warm_up, setting.device, what)
    results = [Result(name, setting, seconds[name]) for name in runs]
    reductions = {name_of(pattern): bench.flop_reduction(pattern) for pattern in patterns}
    for result in results:
        result.flop_reduction = reductions.get(result.variant)
        if profile_rounds and result.variant != "floor":
            kind = "reference" if result.variant == "reference" else "ours"
            model = models.reference if kind == "reference" else models.ours
            result.parts = parts_of(
                runs[result.variant],
                model,
                kind,
                setting.device,
                setting.text_length,
                profile_rounds,
            )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    first = Setting(
        arch=options.arch,
        image_size=options.image_size,
        batch_size=options.batch_size[0],
        beam=options.beam,
        steps=options.steps,
        text_length=options.text_length,
        vocabulary=options.vocabulary,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        seed=options.seed,
    )
    settings = [replace(first, batch_size=size) for size in options.batch_size]
    print(heading(first, options.rounds, options.warm_up), flush=True)
    if options.check:
        exact = Models(replace(first, dtype="float32"), ("reference",))
        for setting in settings:
            worst = check(exact, replace(setting, dtype="float32"))
            print(f"batch {setting.batch_size}: tokens equal, scores within {worst:.1e}")
        del exact
    models = Models(first, options.only)
    results: list[Result] = []
    for setting in settings:
        patterns = options.depths if "exits" in options.only else ()
        results += measure(
            models,
            setting,
            options.only,
            patterns,
            options.rounds,
            options.warm_up,
            options.profile_rounds,
        )
        if options.csv:
            write_csv(results, options.csv)
    print(f"\n{table(results)}")
    if options.profile_rounds:
        print(f"\n{parts_table(results)}")
    judged = verdict(results)
    if judged:
        print(f"\n{aligned([('target', 'measured', 'wanted', ''), *judged])}")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.generate",
        description=__doc__,
        epilog="variants: " + "; ".join(f"{name}: {what}" for name, what in KINDS.items()),
    )
    add = found.add_argument
    shown = "(default %(default)s)"
    add("--arch", default="ofa_base", choices=list(ARCHS), help=f"model {shown}")
    add("--image-size", type=int, default=480, metavar="PIXELS", help=f"side {shown}")
    add("--beam", type=int, default=5, help=shown)
    add("--batch-size", type=numbers, default=[1, 8], metavar="N,…", help="(default 1,8)")
    add("--steps", type=int, default=17, help=f"decoder calls, eos's included {shown}")
    add("--text-length", type=int, default=8, help=f"source tokens {shown}")
    add("--vocabulary", type=int, default=59457, help=f"words of the model {shown}")
    add(
        "--depths",
        type=depths,
        nargs="+",
        default=list(DEPTHS),
        metavar="IMAGE,TEXT,DECODER",
        help="patterns of exits (default 6,2,3 3,3,3 2,3,2 1,1,1)",
    )
    add("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="VARIANT")
    add("--rounds", type=int, default=9, help=f"timed runs of each variant {shown}")
    add("--warm-up", type=int, default=2, help=f"runs of each before that {shown}")
    add(
        "--profile-rounds",
        type=int,
        default=3,
        help=f"further runs with timers around the parts; 0 leaves the split out {shown}",
    )
    add("--threads", type=int, default=torch.get_num_threads(), help=f"of torch {shown}")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help=shown)
    add("--device", choices=["cpu", "cuda"], default="cpu", help=shown)
    add("--seed", type=int, default=1, help=f"of pictures and texts {shown}")
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="first see that full depth gives the reference's tokens and, within 1e-4, its scores, "
        "in float32; stop if not",
    )
    add("--csv", type=Path, metavar="FILE", help="where the numbers go, a line a variant")
    return found


if __name__ == "__main__":
    sys.exit(main())

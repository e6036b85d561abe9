"""Time and memory of generating one batch: this package, plain OFA, and the arithmetic alone.

Weights and inputs are pseudo-random and the same in every run. Every hypothesis gets the same
number of tokens, so all variants do the same work. Image and text are encoded separately, which
exits of each need, or together with ``--joint``. Each round runs every variant once, and variants
are compared by medians of the ratios within rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.memory import peak_bytes
from benchmarks.parts import measure_parts
from benchmarks.plot import GROWING, draw
from benchmarks.report import Result, heading, parts_table, table, verdict_table, write_csv
from benchmarks.setting import Setting
from benchmarks.timing import CLOCKS, interleaved
from benchmarks.variants import (
    HALF_OF_THE_TOKENS,
    KINDS,
    Bench,
    Depths,
    Models,
    deviation,
    variant_name,
)
from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAConfig
from ofa_exit.policies.static import StaticExit

TOLERANCE = 1e-4
FIELDS = set(Setting.__dataclass_fields__)
DEPTHS = ((6, 2, 3), (3, 3, 3), (2, 3, 2), (1, 1, 1))
JOINT_DEPTHS = ((6, 6, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1))


def depths(text: str) -> Depths:
    """Parse IMAGE,TEXT,DECODER, three numbers of layers."""
    try:
        image, words, decoder = (int(number) for number in text.split(","))
        return StaticExit((image, words, decoder)).depths
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not IMAGE,TEXT,DECODER: give three numbers of layers, as in 3,3,3"
        ) from error


def numbers(text: str) -> list[int]:
    """Parse positive numbers separated by commas."""
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, as in 1,8") from error
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: every number must be at least 1")
    return found


def growing(base: Setting, growth: str) -> list[Setting]:
    """Return the settings of a sweep over one number, with the others as in ``base``."""
    if growth == "image":
        largest = 16 * ARCHS[base.arch].get("image_bucket_size", OFAConfig().image_bucket_size)
        sizes = {int(base.image_size * quarters / 64 + 0.5) * 16 for quarters in range(1, 6)}
        values = sorted(size for size in sizes if 16 <= size <= largest)
    else:
        values = {"beam": [1, 2, 3, 5, 7, 10], "batch": [1, 2, 4, 8, 16]}[growth]
    return [replace(base, **{GROWING[growth]: value}) for value in values]


def check(models: Models, setting: Setting) -> float:
    """Return the largest difference of scores between full depth and the reference.

    Raises:
        RuntimeError: if tokens differ, or scores by more than 1e-4.
    """
    bench = Bench(models, setting)
    worst = deviation(bench.ours(None)(), bench.reference())
    if not worst <= TOLERANCE:
        what = "tokens differ" if worst == float("inf") else f"scores differ by {worst:.2e}"
        raise RuntimeError(f"{setting}: full depth differs from the reference: {what}")
    return worst


def measure(models: Models, setting: Setting, options: argparse.Namespace) -> list[Result]:
    """Measure every variant in one setting: time, parts and memory."""
    bench = Bench(models, setting)
    default = JOINT_DEPTHS if options.joint else DEPTHS
    patterns = options.depths or default if "exits" in options.only else []
    runs = bench.runs(options.only, patterns)
    seconds = interleaved(runs, options.rounds, options.warm_up, setting)
    results = {name: Result(name, setting, seconds[name]) for name in runs}
    for pattern in patterns:
        results[variant_name(pattern)].flop_reduction = bench.flop_reduction(StaticExit(pattern))
    if "tokens" in results:
        saved = bench.flop_reduction(None, HALF_OF_THE_TOKENS)
        results["tokens"].flop_reduction = saved
    if "mixed" in results:
        results["mixed"].flop_reduction = bench.flop_reduction(bench.mixed())
    if options.profile_rounds:
        timed = {
            name: (run, models.reference, "reference")
            if name == "reference"
            else (run, models.ours, "ours")
            for name, run in runs.items()
            if name != "floor"  # it has no model whose parts could be timed
        }
        if timed:
            for name, parts in measure_parts(timed, options.profile_rounds, setting).items():
                results[name].parts = parts
    if options.memory:
        kinds = [(kind, kind, None) for kind in options.only if kind not in ("exits", "floor")]
        kinds += [(variant_name(pattern), "exits", pattern) for pattern in patterns]
        for name, kind, pattern in tqdm(kinds, desc=f"memory, {setting}", leave=False):
            results[name].peak_bytes = peak_bytes(setting, kind, pattern)
    return list(results.values())


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        base = Setting(
            batch_size=options.batch_size[0],
            **{k: v for k, v in vars(options).items() if k in FIELDS - {"batch_size"}},
        )
        settings = (
            growing(base, options.growth)
            if options.growth
            else [replace(base, batch_size=size) for size in options.batch_size]
        )
    except ValueError as error:
        parser().error(str(error))
    note = heading(base, options.rounds, options.warm_up)
    print(note, flush=True)
    models = Models(base, options.check or bool({"reference", "floor"} & set(options.only)))
    if options.check:
        exact = replace(base, dtype="float32")
        pair = models if base == exact else Models(exact)
        try:
            for setting in settings:
                worst = check(pair, replace(setting, dtype="float32"))
                print(f"{setting}: tokens equal, scores within {worst:.1e}", flush=True)
        except RuntimeError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
        del pair
    results: list[Result] = []
    for setting in settings:
        results += measure(models, setting, options)
        if options.csv:  # after each setting, so that an interruption loses little
            write_csv(results, options.csv)
    print(f"\n{table(results)}")
    if any(result.parts for result in results):
        print(f"\n{parts_table(results)}")
    targets = verdict_table(results)
    if targets:
        print(f"\n{targets}")
    if options.plot:
        draw(results, options.growth, options.plot, note)
    return 0


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(
        prog="python -m benchmarks.generate",
        description=__doc__,
        epilog="variants: " + "; ".join(f"{name}: {what}" for name, what in KINDS.items()),
    )
    add = built.add_argument
    shown = "(default %(default)s)"
    add("--arch", default="ofa_base", choices=list(ARCHS), help=f"model {shown}")
    add("--image-size", type=int, default=480, metavar="PIXELS", help=f"side of the image {shown}")
    add("--beam", type=int, default=5, help=shown)
    add("--batch-size", type=numbers, default=[1, 8], metavar="N,…", help="(default 1,8)")
    add("--steps", type=int, default=17, help=f"decoder calls, end of sentence included {shown}")
    add("--text-length", type=int, default=8, help=f"source tokens {shown}")
    add("--vocabulary", type=int, default=59457, help=f"size of the vocabulary {shown}")
    add(
        "--joint",
        action="store_true",
        help="encode image and text together, as official checkpoints do",
    )
    add(
        "--depths",
        type=depths,
        nargs="+",
        metavar="IMAGE,TEXT,DECODER",
        help="patterns of exits (default 6,2,3 3,3,3 2,3,2 1,1,1; joint 6,6,3 3,3,3 2,2,2 1,1,1)",
    )
    add(
        "--only",
        nargs="+",
        choices=list(KINDS),
        default=list(KINDS),
        metavar="VARIANT",
        help="variants to measure, see below (default: all)",
    )
    add("--rounds", type=int, default=9, help=f"timed rounds {shown}")
    add("--warm-up", type=int, default=2, help=f"rounds before the timed ones {shown}")
    add(
        "--profile-rounds",
        type=int,
        default=3,
        help=f"extra rounds with timers around the parts; 0 skips them {shown}",
    )
    add("--threads", type=int, default=torch.get_num_threads(), help=f"threads of torch {shown}")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help=shown)
    add("--device", choices=["cpu", "cuda"], default="cpu", help=shown)
    add("--seed", type=int, default=1, help=f"seed of images and texts {shown}")
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="first check in float32 that full depth gives the reference's tokens and, within "
        "1e-4, its scores; stop if it does not",
    )
    add(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure peak memory, with each variant in its own process",
    )
    add(
        "--growth",
        choices=list(GROWING),
        help="sweep one size in place of --batch-size: beam 1 to 10, batch 1 to 16, or image from "
        "1/4 to 5/4 of --image-size",
    )
    add(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: CPU time of this process, steadier on a busy machine; with one thread it equals "
        f"the wall time of an idle one {shown}",
    )
    add("--plot", type=Path, metavar="OUT", help="draw OUT.png and OUT.svg")
    add("--csv", type=Path, metavar="FILE", help="write the numbers, one line per variant")
    return built


if __name__ == "__main__":
    sys.exit(main())

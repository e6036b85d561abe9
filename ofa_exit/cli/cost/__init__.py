"""What training and answering cost, before they are run:

    ofa-exit cost --rows N    one training, in detail
    ofa-exit cost --plan      the data sets of the papers, in a table
    ofa-exit cost --measure   seconds that a sample takes on this machine

The first two are counted, nothing is computed or allocated: a training step of ``mue_loss`` on
tensors without values gives the operations (a multiply-add is 2) and the bytes that the backward
pass keeps, for batches of 1 and 2, whose difference is the cost of a sample. Derived from them, for
the rates that are given: hours, memory and disk.

    hours = operations of a sample · rows · epochs / (TFLOP/s · 10¹² · 3600 · GPUs)
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ofa_exit.cli.cost.counted import (
    Answer,
    Lengths,
    answer_flops,
    build,
    hours,
    picture_cost,
    sample_cost,
)
from ofa_exit.cli.cost.datasets import GIB, as_text, plan
from ofa_exit.cli.cost.measured import measure
from ofa_exit.models.archs import ARCHS

GIGA = 1e9
# Bytes of a parameter in training: weight, gradient and Adam's two moments, in float32.
STATE_BYTES = 16
# Bytes of a parameter in a checkpoint: weight and the moments.
SAVED_BYTES = 12


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ofa-exit cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    real: dict[str, Any] = {"type": float, "metavar": "X"}
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--rows", **number, help="rows of the training file")
    what.add_argument("--plan", action="store_true", help="all data sets of the papers")
    what.add_argument("--measure", action="store_true", help="time a sample on this machine")
    parser.add_argument("--epochs", default=5, **real, help="default: %(default)s, as in MuE")
    parser.add_argument("--arch", default="ofa_base", choices=ARCHS, help="default: %(default)s")
    for flag, default, text in (
        ("--patch-image-size", 480, "side of the pictures in pixels"),
        ("--source-length", 8, "words of the source, start and end included"),
        ("--target-length", 12, "words of the target, end included"),
        ("--beam", 5, "hypotheses of the search that answers a row"),
        ("--steps", 17, "its steps, the end's included"),
        ("--batch", 8, "samples that a GPU holds at a time"),
        ("--gpus", 1, "GPUs"),
        ("--repeats", 3, "of --measure, after one that does not count"),
    ):
        parser.add_argument(flag, default=default, **number, help=f"{text} (default: %(default)s)")
    parser.add_argument("--layer-weights", default="uniform", help="as in training")
    parser.add_argument(
        "--tflops",
        default=[20, 50, 100],
        nargs="+",
        **real,
        help="TFLOP/s that a GPU sustains, a number for each hypothesis (default: 20 50 100)",
    )
    parser.add_argument(
        "--row-bytes", default=220_000, **number, help="of the data file (default: %(default)s)"
    )
    parser.add_argument("--checkpoint-activations", action="store_true", help="as in training")
    parser.add_argument("--device", default="cpu", help="of --measure (default: %(default)s)")
    return parser


def lengths_of(given: argparse.Namespace) -> Lengths:
    return Lengths(given.patch_image_size, given.source_length, given.target_length)


def report(given: argparse.Namespace) -> str:
    """The counts, and what follows from them."""
    lengths = lengths_of(given)
    model = build(given.arch, checkpoint_activations=given.checkpoint_activations)
    one = sample_cost(model, lengths, given.layer_weights)
    answer = answer_flops(model, lengths, Answer(given.beam, given.steps))
    stem = picture_cost(model, lengths.size)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    memory = (parameters * STATE_BYTES + given.batch * one.kept) / GIB
    rows = [
        ("parameters", f"{parameters / 1e6:.1f} million"),
        ("picture", f"{stem.tokens} tokens, stem {stem.flops / GIGA:.1f} GFLOPs"),
        ("forward, a sample", f"{one.forward / GIGA:.1f} GFLOPs"),
        ("training step, a sample", f"{one.training / GIGA:.1f} GFLOPs"),
        ("  of the forward pass", f"{one.training / one.forward:.2f} times"),
        (f"answer, beam {given.beam}, {given.steps} steps", f"{answer / GIGA:.1f} GFLOPs"),
        ("kept for backward, a sample", f"{one.kept / GIB:.2f} GiB in float32"),
        (f"memory of a GPU, batch {given.batch}", f"{memory:.1f} GiB in float32, estimated"),
        ("checkpoint", f"{parameters * SAVED_BYTES / GIB:.1f} GiB, estimated"),
        ("data file", f"{given.rows * given.row_bytes / GIB:.0f} GiB, estimated"),
    ]
    for rate in given.tflops:
        time = hours(one.training, given.rows, given.epochs, rate, given.gpus)
        rows.append((f"training at {rate:g} TFLOP/s", f"{time:.1f} hours, estimated"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def measured(given: argparse.Namespace) -> str:
    """Seconds of a sample here, and what they come to in operations a second."""
    lengths, answer = lengths_of(given), Answer(given.beam, given.steps)
    counted = build(given.arch)
    operations = {
        "training": sample_cost(counted, lengths, given.layer_weights).training,
        "beam": answer_flops(counted, lengths, answer),
    }
    model = build(given.arch, device=given.device)
    found = measure(model, lengths, answer, given.repeats, given.layer_weights)
    table = [["", "seconds", "GFLOP/s"]]
    for name, seconds in found.items():
        count = operations.get(name.split()[0].rstrip(","))
        rate = f"{count / seconds / GIGA:.0f}" if count else ""
        table.append([name, f"{seconds:.3g}", rate])
    where = given.device
    if torch.device(given.device).type == "cpu":
        where += f" (threads: {torch.get_num_threads()})"
    return f"{given.arch} on {where}, batches of 1\n{as_text(table)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    given = parser.parse_args(arguments)
    numbers = [1 if given.rows is None else given.rows, given.epochs, given.batch, given.gpus]
    numbers += [given.row_bytes, *given.tflops, given.beam, given.steps, given.repeats]
    numbers += [given.patch_image_size, given.source_length, given.target_length]
    if min(numbers) <= 0:
        parser.error("numbers of rows, pixels, words, GPUs and operations are above 0")
    try:
        if given.plan:
            print(plan(given.arch, given.tflops, given.row_bytes))
        else:
            print(measured(given) if given.measure else report(given))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Estimate what training and answering cost, before they are run:

  ofa-exit cost --rows N    one training, in detail
  ofa-exit cost --plan      the data sets of the papers, in a table
  ofa-exit cost --measure   seconds per sample on this machine

The first two count operations; nothing is computed or allocated. A training step of mue_loss on
tensors without values gives the operations (a multiply-add is 2) and the bytes kept for the
backward pass, for batches of 1 and 2. The difference is the cost of a sample. Hours, memory and
disk follow for the given rates:

  hours = operations per sample · rows · epochs / (TFLOP/s · 10¹² · 3600 · GPUs)
"""

import argparse
from collections.abc import Sequence
from typing import Any

from ofa_exit.cli.parsing import new_parser
from ofa_exit.models.archs import ARCHS


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("cost", __doc__)
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    real: dict[str, Any] = {"type": float, "metavar": "X"}
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--rows", **number, help="rows of the training file")
    mode.add_argument("--plan", action="store_true", help="all data sets of the papers")
    mode.add_argument("--measure", action="store_true", help="time a sample on this machine")
    parser.add_argument("--epochs", default=5, **real, help="default: %(default)s, as in MuE")
    parser.add_argument("--arch", default="ofa_base", choices=ARCHS, help="default: %(default)s")
    for flag, default, text in (
        ("--patch-image-size", 480, "side of the images in pixels"),
        ("--source-length", 8, "source tokens, including start and end"),
        ("--target-length", 12, "target tokens, including the end"),
        ("--beam", 5, "beam size of the search that answers a row"),
        ("--steps", 17, "steps of the search, including the end's"),
        ("--batch", 8, "samples per GPU and forward pass"),
        ("--gpus", 1, "number of GPUs"),
        ("--repeats", 3, "timed repeats of --measure, after one warm-up"),
    ):
        parser.add_argument(flag, default=default, **number, help=f"{text} (default: %(default)s)")
    parser.add_argument("--layer-weights", default="uniform", help="as in training")
    parser.add_argument(
        "--tflops",
        default=[20, 50, 100],
        nargs="+",
        **real,
        help="TFLOP/s that a GPU sustains; one column per value (default: 20 50 100)",
    )
    parser.add_argument(
        "--row-bytes",
        default=220_000,
        **number,
        help="bytes of a row of the data file (default: %(default)s)",
    )
    parser.add_argument("--checkpoint-activations", action="store_true", help="as in training")
    parser.add_argument("--device", default="cpu", help="of --measure (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    numbers = [1 if args.rows is None else args.rows, args.epochs, args.batch, args.gpus]
    numbers += [args.row_bytes, *args.tflops, args.beam, args.steps, args.repeats]
    numbers += [args.patch_image_size, args.source_length, args.target_length]
    if min(numbers) <= 0:
        parser.error("numbers of rows, pixels, tokens, GPUs and operations must be above 0")
    # Slow, so after the parse.
    from ofa_exit.cli.cost.datasets import plan
    from ofa_exit.cli.cost.reports import measured_report, report

    try:
        if args.plan:
            print(plan(args.arch, args.tflops, args.row_bytes))
        else:
            print(measured_report(args) if args.measure else report(args))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    return 0

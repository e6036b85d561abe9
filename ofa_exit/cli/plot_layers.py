"""Draw the quality after each decoder layer and suggest where to put exits.

  ofa-exit plot-layers curve.csv --quality CIDEr --out curve

Reads what ofa-exit layers measured, prints what every layer does to the quality, draws Figure 2 of
BLIPEE to curve.png and curve.svg, and prints the --exit-layers to train. The columns are `run`,
`layer` and the quality; other columns are ignored.
"""

import argparse
from collections.abc import Sequence

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.evaluation.figures.layer_curve import check_share, describe, plot_layers, read_curves


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select exits; ``ofa-exit layers`` has them too."""
    parser.add_argument(
        "--share",
        type=_share,
        default=1.0,
        help="a layer falls if it is below this share of the best before it (default: %(default)s)",
    )
    parser.add_argument(
        "--exits",
        metavar="COUNT",
        type=_count,
        help="number of exits, spread evenly (default: one after every layer that does not fall)",
    )


def _share(text: str) -> float:
    try:
        return check_share(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} exits: give a whole number of at least 1")
    return int(text)


@prints_errors("plot-layers", OSError, ValueError, ImportError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("plot-layers", __doc__)
    parser.add_argument("csv", help="file written by ofa-exit layers")
    parser.add_argument("--quality", required=True, help="quality column, for instance CIDEr")
    parser.add_argument("--out", help="files to draw, without .png and .svg (default: none)")
    add_options(parser)
    args = parser.parse_args(argv)
    curves = read_curves(args.csv, args.quality)
    if args.out:
        print(*plot_layers(curves, args.quality, args.out, args.share), sep="\n")
    print(describe(curves, args.quality, args.share, args.exits))
    return 0

"""Draw the accuracy-time curve: quality against savings.

  ofa-exit plot sweep.csv … --quality CIDEr --out sweep

Reads CSV files with a header and writes sweep.png and sweep.svg, one panel for each of --axes. The
columns are `run`, the quality and the axes. Reductions are fractions. Other columns are ignored,
and an empty field leaves its point out. A line joins the settings of a run that no other setting
of the run beats in both savings and quality. The others are pale.
"""

from collections.abc import Sequence

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.evaluation.figures.plots import AXES, REDUCTIONS, plot_curve, read_points


@prints_errors("plot", OSError, ValueError, ImportError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("plot", __doc__)
    parser.add_argument("csv", nargs="+", help="CSV with the columns run, QUALITY and the axes")
    parser.add_argument("--quality", required=True, help="quality column, for instance CIDEr")
    parser.add_argument(
        "--axes",
        default=",".join(REDUCTIONS),
        help=f"columns to draw it against, of {', '.join(AXES)} (default: %(default)s)",
    )
    parser.add_argument("--out", required=True, help="files to write, without .png and .svg")
    args = parser.parse_args(argv)
    axes = args.axes.split(",")
    if unknown := [name for name in axes if name not in AXES]:
        parser.error(f"--axes {', '.join(unknown)}: choose from {', '.join(AXES)}")
    points = [point for path in args.csv for point in read_points(path, args.quality, axes)]
    written = plot_curve(points, args.quality, args.out)
    print(*written, sep="\n")
    return 0

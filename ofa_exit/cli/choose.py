"""Select an exit setting on one split and report it on others.

  ofa-exit choose --baseline results/caption_valid_plain.csv \\
      results/caption_valid_mue.csv results/caption_test_artist_mue.csv …

The files are CSV tables of ofa-exit sweep. Candidates are the settings of the first file whose
quality is at least --keep times the baseline's, the first line of its table (usually the model
without exits). The candidate with the largest savings (--by) is selected, and its line in every
file is printed. The column `of no exits` is the share of the same file's first line: each file's
own model without exits, not the baseline's. A threshold selected and reported on the same split
would look better than it is.
"""

from collections.abc import Sequence

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.evaluation.figures.choice import choose, read_settings, table


@prints_errors("choose", OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("choose", __doc__)
    parser.add_argument("valid", metavar="VALID.csv", help="sweep on the split to select on")
    parser.add_argument(
        "tests", nargs="*", metavar="TEST.csv", help="sweeps of the same settings on other splits"
    )
    parser.add_argument("--quality", default="CIDEr", help="quality column (default: %(default)s)")
    parser.add_argument(
        "--keep",
        type=float,
        default=0.96,
        help="share of the baseline's quality to keep (default: %(default)s)",
    )
    parser.add_argument(
        "--baseline", metavar="FILE.csv", help="sweep with the baseline (default: VALID.csv)"
    )
    parser.add_argument(
        "--by",
        default="expected_time_reduction",
        help="column of the savings to maximise (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if not 0 < args.keep <= 2:
        parser.error(f"--keep {args.keep:g}: give a share of 1, not percent, as in 0.96")
    try:
        files = {name: read_settings(name) for name in (args.valid, *args.tests)}
        baseline = next(iter(read_settings(args.baseline or args.valid).values()))
        wanted = args.keep * float(baseline[args.quality])
        setting = choose(files[args.valid], args.quality, wanted, args.by)
        lines = table(setting, files, args.quality)
    except KeyError as error:
        raise ValueError(f"no column {error}") from error
    print(f"{setting}: at least {wanted:.1f} {args.quality} wanted on {args.valid}")
    if float(files[args.valid][setting][args.quality]) < wanted:
        print("no setting reaches it: the first one, without exits, is shown")
    print("\t".join(lines[0]))
    for line in lines:
        print("\t".join(line.values()))
    print("of no exits: the share of the same file's first line, which is its own full depth")
    if args.baseline:
        share = float(files[args.valid][setting][args.quality]) * args.keep / wanted
        print(f"{args.valid}: {100 * share:.1f} % of the first line of {args.baseline}")
    return 0

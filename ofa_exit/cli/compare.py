"""Compare methods: tables and curves of their sweeps.

  ofa-exit compare FOLDER --baseline plain --quality CIDEr --keep 0.96,0.99,0.9

FOLDER has a folder for every method, with CSV files of ofa-exit sweep:

  FOLDER/plain/valid.csv         the same splits for every method, full depth in the first line
  FOLDER/plain/test.csv          test*.csv are the test splits
  FOLDER/mue@1/valid.csv …       NAME@SEED: several trainings of a method give means and ranges
  FOLDER/mue/trained_parameters.txt   optional: a number

A setting is chosen on validation and read on the test splits. The main rule takes the setting that
saves most (--by) among those that keep the first share of --keep of the baseline's validation
quality at full depth. --by parameter_speedup chooses by BLIPEE's measure.

Writes to FOLDER (or --out):
  table.md     main table (MuE Tables 1 and 5, BLIPEE Tables 1 to 4), trade-off over all of --keep
               and --save (MuE Table 3), ablation if mue and no_split or no_layer_loss are there
               (MuE Table 4), image against text layers if a sweep exits them separately with the
               decoder in full (MuE Table 2)
  table.csv    the same numbers, one line per method, rule and split
  options.txt  the setting of the main rule for every training, as options of fairseq-generate
  curves.png   quality against savings of all methods, also as .svg (MuE Figures 1 and 4, BLIPEE
               Figure 4b). Lines join the settings that no other beats on validation; the others are
               faint. More than seven methods have a row of panels for each family. With several
               test splits curves_SPLIT.png; of a further score (--scores, MuE Figure 6)
               curves_SCORE.png

A folder without all splits, of a seed that is not finished, is left out with a warning.

--paper adds the numbers that the papers print for the same data set, in grey.
"""

from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.evaluation.figures.compare import Comparison, csv_lines, option_lines, write_csv
from ofa_exit.evaluation.figures.compare_page import page
from ofa_exit.evaluation.figures.families import panels
from ofa_exit.evaluation.figures.methods import Method, check_quality, read_methods
from ofa_exit.evaluation.figures.paper_numbers import paper_names, paper_rows
from ofa_exit.evaluation.figures.plots import AXES, method_points, plot_curve
from ofa_exit.evaluation.figures.savings import against_baseline


def compare(
    folder: Path,
    out: Path,
    names: Sequence[str] = (),
    baseline: str = "plain",
    quality: str | None = None,
    keep: Sequence[float] = (0.96,),
    save: Sequence[float] = (),
    by: str = "expected_time_reduction",
    axes: Sequence[str] = tuple(AXES),
    paper: Sequence[str] = (),
    scores: Sequence[str] = (),
) -> list[Path]:
    """Write the tables and curves of a comparison; return their paths.

    Args:
        folder: see the module's text.
        out: folder to write to.
        names: methods, in the order of the tables; none = all, by family, the baseline first.
        paper: data sets of the papers, see ``paper_names``.
        scores: further scores to draw curves of; ``all`` = those that every sweep has.

    Raises:
        ValueError: files that are missing or do not belong together.
    """
    methods = read_methods(folder, names)
    found = [method.name for method in methods]
    if baseline not in found:
        raise ValueError(
            f"no method {baseline!r} among {', '.join(found)}: name one of them with --baseline, "
            "or compare the baseline, too"
        )
    quality = check_quality(methods, quality)
    methods.sort(key=lambda method: method.name != baseline)
    methods = against_baseline(methods, methods[0])
    drawn = [quality, *(score for score in _drawn(methods, scores) if score != quality)]
    comparison = Comparison(methods, methods[0], quality, keep, by, save, paper_rows(paper))
    lines, text = csv_lines(comparison), page(comparison)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, out / "table.csv")
    (out / "table.md").write_text(text, encoding="utf-8")
    options = "".join(f"{line}\n" for line in option_lines(comparison))
    (out / "options.txt").write_text(options, encoding="utf-8")
    written = [out / "table.md", out / "table.csv", out / "options.txt"]
    for split in comparison.splits:
        name = "curves" if len(comparison.splits) == 1 else f"curves_{split}"
        for score in drawn:
            points = method_points(methods, split, score, axes)
            file = name if score == quality else f"{name}_{score}"
            rows = panels([method.name for method in methods], baseline)
            written += plot_curve(points, score, out / file, rows)
    return written


def _drawn(methods: Sequence[Method], scores: Sequence[str]) -> list[str]:
    """Return the scores to draw, none twice. Raises ValueError if a sweep lacks one."""
    if "all" in scores:
        sweeps = [sweep for method in methods for sweep in method.sweeps]
        scores = [s for s in sweeps[0].scores if all(s in sweep.scores for sweep in sweeps)]
    return [check_quality(methods, score) for score in dict.fromkeys(scores)]


@prints_errors("compare", OSError, ValueError, ImportError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("compare", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds a folder per method")
    parser.add_argument(
        "methods",
        nargs="*",
        default=[],
        metavar="METHOD",
        help="those to compare, in this order (default: all, by family)",
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: FOLDER)")
    parser.add_argument(
        "--baseline",
        default="plain",
        help="method that shares and savings refer to (default: plain)",
    )
    parser.add_argument("--quality", help="score to choose by (default: CIDEr, or the first)")
    parser.add_argument(
        "--keep",
        default="0.96,0.99,0.9",
        metavar="SHARES",
        help="shares of the baseline's quality to keep; the first is that of the main table "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--save",
        default="0.2,0.3,0.4,0.5",
        metavar="SHARES",
        help="shares of the expected time to save at least (default: %(default)s)",
    )
    parser.add_argument(
        "--by",
        default="expected_time_reduction",
        choices=list(AXES),
        help="saving that the choice maximises (default: %(default)s)",
    )
    parser.add_argument(
        "--axes",
        default=",".join(AXES),
        metavar="SAVINGS",
        help=f"what to draw quality against, of {', '.join(AXES)} (default: all)",
    )
    parser.add_argument(
        "--scores",
        default="",
        metavar="SCORES",
        help="draw curves of these scores, too, or of all (default: only --quality)",
    )
    parser.add_argument(
        "--paper",
        default="",
        metavar="DATA_SETS",
        help=f"printed numbers to add in grey, of {', '.join(paper_names())}",
    )
    args = parser.parse_intermixed_args(argv)  # options may stand between FOLDER and METHOD
    axes = args.axes.split(",")
    if unknown := [name for name in axes if name not in AXES]:
        parser.error(f"--axes {', '.join(unknown)}: choose from {', '.join(AXES)}")
    keep, save = _shares("--keep", args.keep), _shares("--save", args.save)
    written = compare(
        args.folder, args.out or args.folder, args.methods, args.baseline, args.quality,
        keep, save, args.by, axes, _names(args.paper), _names(args.scores),
    )  # fmt: skip
    print(*written, sep="\n")
    return 0


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _shares(option: str, text: str) -> list[float]:
    """Return the numbers of a list such as 0.96,0.9, none twice. Raises ValueError."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 2 for share in shares):
        raise ValueError(f"{option} {text}: give shares of 1, not percent, as in 0.96,0.9")
    return list(dict.fromkeys(shares))

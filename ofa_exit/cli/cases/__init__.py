"""Show what methods generate, every word in the colour of its exit layer.

  fairseq-generate DATA … --exit-policy similarity --exit-trace mue.jsonl     # for each method
  ofa-exit cases cases.html plain=plain.jsonl MuE=mue.jsonl DATA --task mue_caption …

Give the traces as NAME=FILE, then DATA; everything else goes to fairseq-generate's parser unchanged
(--task, --gen-subset, --bpe-dir, …). Writes OUT.html, one file with its images inside that opens
from the disk without a network (MuE Figure 5, BLIPEE Figure 3), and draws OUT.png and OUT.svg with
at most six methods.

A row shows its image, its references and the best hypothesis of each method. A trace holds tokens
and layers. With --checkpoint NAME=FILE, the checkpoint of that method, pointing at a word also
shows its confidence (the largest probability where it left) and the cosine of the states before and
after its last layer. They come from a pass that is fed the hypothesis and exits at the traced
layers.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors


def show(verb: str, args: Namespace, arguments: list[str]) -> list[Path]:
    """Write the page and the figure; return their paths.

    Args:
        verb: the program's name in errors.
        args: the verb's own options.
        arguments: those of fairseq-generate.

    Raises:
        UsageError: options or files that do not fit.
    """
    # Slow, so not for --help.
    from ofa_exit.cli.cases.rows import CaseReader
    from ofa_exit.cli.generation import Generation, named_files
    from ofa_exit.evaluation.figures.case_figure import plot_cases
    from ofa_exit.evaluation.figures.case_page import case_page
    from ofa_exit.evaluation.figures.cases import choose_rows, depth_of, read_trace
    from ofa_exit.plugin.errors import UsageError, usage_errors

    *pairs, data = args.traces
    checkpoints = named_files(args.checkpoint, "CHECKPOINT")
    with usage_errors():
        traces = {name: read_trace(file) for name, file in named_files(pairs, "TRACE").items()}
        if unknown := [name for name in checkpoints if name not in traces]:
            raise UsageError(
                f"--checkpoint {unknown[0]}=…: no trace has that name, they are {', '.join(traces)}"
            )
        names = [name for name in args.rows.split(",") if name]
        rows = choose_rows(traces, names, args.count, args.largest_saving)
        available = len(choose_rows(traces, count=sys.maxsize))
    generation = Generation(verb, [data, *arguments], list(checkpoints.values()))
    cases = CaseReader(generation, traces, checkpoints).cases(rows)
    _, depth = depth_of(traces)
    which = "named" if names else "saving most" if args.largest_saving else "the first"
    choice = f"{len(rows)} of {available} rows: {which}."
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(case_page(cases, depth, choice), encoding="utf-8")
    return [args.out, *plot_cases(cases, depth, args.out.with_suffix(""))]


@prints_errors("cases", ImportError)  # matplotlib is missing
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(
        "cases",
        __doc__,
        usage="%(prog)s [options] OUT.html NAME=TRACE… DATA [options of fairseq-generate]",
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT.html", help="file to write")
    parser.add_argument(
        "traces", nargs="+", metavar="NAME=TRACE… DATA", help="files of --exit-trace, then the data"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="checkpoint of a method, for confidences and cosines; may be repeated",
    )
    parser.add_argument(
        "--rows", default="", metavar="IDS", help="names of the rows to show, separated by commas"
    )
    parser.add_argument(
        "--count", type=int, default=8, help="rows to show without --rows (default: %(default)s)"
    )
    parser.add_argument(
        "--largest-saving",
        action="store_true",
        help="show the rows that save most expected time instead of the first ones",
    )
    args, arguments = parser.parse_known_args(argv)
    if len(args.traces) < 2:
        parser.error("give at least one trace as NAME=FILE, and then the data")
    if args.out.suffix not in (".html", ".htm"):
        parser.error(f"{args.out}: name a file that ends in .html")
    try:
        check_outputs(args, "out", inputs=arguments)
    except ValueError as error:
        parser.error(str(error))
    if args.count < 1:
        parser.error(f"--count {args.count}: give at least 1")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs every font it looks at
    sys.argv = [parser.prog, args.traces[-1], *arguments]  # fairseq looks for --user-dir there
    print(*show(parser.prog, args, arguments), sep="\n")
    return 0

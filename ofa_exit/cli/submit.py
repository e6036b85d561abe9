"""Write a benchmark's result file from generated text.

  ofa-exit submit BENCHMARK GENERATED … TSV OUT.json

GENERATED is what fairseq-generate --results-path wrote (generate-test.txt; all of the files if
several processes shared the work). TSV is the file that was generated for. A line D-5 belongs to
row 5, counted from 0. The identifier of that row (column 0 of OFA's files) goes into the result.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors
from ofa_exit.data.files import write_bytes
from ofa_exit.evaluation.metrics.submission import FORMATS, make_results


def build_parser() -> ArgumentParser:
    parser = new_parser("submit", __doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, (_, text) in FORMATS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "generated", nargs="+", type=Path, metavar="GENERATED", help="generate-SPLIT.txt"
        )
        command.add_argument("tsv", type=Path, metavar="TSV", help="file that was generated for")
        command.add_argument("out", type=Path, metavar="OUT.json", help="file to write")
        command.add_argument(
            "--id-column",
            type=int,
            default=0,
            help="column of the TSV, from 0, with the identifiers (default: %(default)s)",
        )
        command.add_argument(
            "--allow-missing", action="store_true", help="leave out rows without a hypothesis"
        )
    return parser


@prints_errors("submit", OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    check_outputs(args, "out")
    if args.id_column < 0:
        parser.error(f"--id-column {args.id_column}: columns count from 0")
    entries = make_results(
        args.benchmark, args.generated, args.tsv, args.id_column, args.allow_missing
    )
    text = json.dumps(entries, ensure_ascii=False) + "\n"
    write_bytes(args.out, text.encode("utf-8"))
    print(f"{args.out}: {len(entries)} results")
    return 0

"""Compare finished generations in a table.

  ofa-exit table "full depth=FOLDER" "with exits=FOLDER" …

FOLDER holds what fairseq-generate --results-path FOLDER wrote and, as log.txt, what it printed.
Times are relative to the first run, usually the one at full depth.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors
from ofa_exit.evaluation.figures.table import compare, format_table, read_run


@prints_errors("table", OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("table", __doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="also write the rows there")
    args = parser.parse_args(argv)
    check_outputs(args, "csv")
    runs = {}
    for run in args.runs:
        name, found, folder = run.partition("=")
        if not found:
            raise ValueError(f"{run!r}: give NAME=FOLDER")
        runs[name] = read_run(Path(folder))
    rows = compare(runs)
    print(format_table(rows))
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    return 0

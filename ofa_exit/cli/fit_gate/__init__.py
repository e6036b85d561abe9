"""Fit the gate of --exit-policy learned: a logistic regression after each decoder layer.

  ofa-exit fit-gate DATA.tsv --checkpoint CKPT --out gate.json --beam 5 …
  fairseq-generate TEST.tsv --path CKPT --exit-policy learned --exit-gate gate.json \\
    --exit-gate-confidence 0.9 …

The rows are generated once, at full depth. After each layer the gate learns, from what is free
(norms of the state before and after the layer and of their difference, and the step), whether the
word is the last layer's. Words are scored after every layer to know that, at fit time only. Give a
few hundred rows that the model was not trained on, and the search that will be used.

The file is of this checkpoint and task, as exits.json of ofa-exit calibrate, which chooses
--exit-gate-confidence with a guarantee, on other rows. docs/exits.md has details.

Everything else goes to fairseq-generate's parser unchanged (--bpe-dir, --batch-size, --beam, …).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "fit-gate",
        __doc__,
        usage="%(prog)s DATA.tsv --checkpoint CKPT --out gate.json [--ridge NUMBER] "
        "[options of fairseq-generate]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="DATA.tsv", help="rows like those that will be generated for")
    add("--checkpoint", required=True, metavar="CKPT", help="of fairseq-train, or OFA's")
    add("--out", required=True, type=Path, metavar="FILE.json", help="file to write")
    add(
        "--ridge",
        type=float,
        default=1.0,
        help="penalty on the squared weights of scaled features, above 0 (default: %(default)s)",
    )
    return parser


@prints_errors("fit-gate")
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args, arguments = parser.parse_known_args(argv)
    if not (args.ridge > 0 and math.isfinite(args.ridge)):
        parser.error(f"--ridge {args.ridge:g}: give a finite number above 0, as in 1")
    if args.out.suffix != ".json":
        parser.error(f"--out {args.out}: name a file that ends in .json")
    # Slow, so not for --help.
    from ofa_exit.cli.fit_gate.run import run

    return run(args, arguments, parser.prog)

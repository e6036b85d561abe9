"""Merge the shards of one generation.

  ofa-exit merge OUT FOLDER…

Each FOLDER is the --results-path of a shard: fairseq-generate --num-shards N --shard-id I. As
log.txt it holds what that command printed (2>&1 | tee FOLDER/log.txt). OUT gets what a single run
would have left: generate-SPLIT.txt, scored as a whole, and log.txt with the report of layers and
operations. Only the times differ: those of all processes are added.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("merge", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the merged results")
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="results of a shard, in any order"
    )
    parser.add_argument(
        "--scoring",
        metavar="SCORER",
        help="scorer of the shards' generation; give its options (--coco-tokenizer, …) too. "
        "Default: no score",
    )
    parser.add_argument(
        "--trace",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also merge the --exit-trace files FOLDER/NAME",
    )
    return parser


@prints_errors("merge", OSError, ValueError, RuntimeError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args, others = parser.parse_known_args(argv)
    if others and not args.scoring:
        parser.parse_args(argv)  # raises: unknown options
    from ofa_exit.cli.merge.shards import add_scorer_options, merge  # slow, so after the parse

    if args.scoring:
        add_scorer_options(parser, args.scoring)
        args = parser.parse_args(argv)
    print(merge(args))
    return 0

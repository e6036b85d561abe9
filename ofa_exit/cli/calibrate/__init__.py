"""Choose exit thresholds with a guarantee (Learn-then-Test).

  ofa-exit calibrate DATA.tsv --checkpoint CKPT --keep 0.96 --confidence 0.95 --out exits.json
  fairseq-generate TEST.tsv --path CKPT --exit-config exits.json …

A third of the rows finds the settings that save most for their loss, over all numeric options of
--exit-policy (default: similarity) at once. The other rows test them from the most careful to the
cheapest one. With the given confidence, the expected loss of the setting in exits.json is at most
1 - keep, for metrics with references times the full model's mean. Exit options that you give, such
as --exit-schedule static, are the same in all settings.

The loss of a row is in [0, 1]:
  consistency  how far the answer is from the full model's: 0 or 1, for captions 1 - ROUGE-L. Needs
               no references (default).
  accuracy     1 where exits turn a right answer into a wrong one; relative to the full accuracy
  vqa          drop of the VQA accuracy, relative to the full model's mean
  cider        drop of CIDEr-D / 10, relative to the full model's mean

--save says what is to be saved: layers (MuE Eq. 14, default), flops or time (measured). For flops
and time every setting runs on every row; for layers, only those that do not follow from others.

What was generated is kept beside OUT in OUT.rows.jsonl. A command that was interrupted resumes
there, and another --keep, --confidence or --metric needs no model. For another --save choose
another --out.
The guarantee holds for rows drawn like those of DATA.tsv. docs/calibration.md has details.

Everything else goes to fairseq-generate's parser unchanged (--bpe-dir, --batch-size, --beam, …).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors

METRICS = ("consistency", "accuracy", "vqa", "cider")
SAVINGS = ("layers", "flops", "time")


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "calibrate",
        __doc__,
        usage="%(prog)s DATA.tsv --checkpoint CKPT --out exits.json [--keep SHARE] "
        "[--confidence SHARE] [--metric METRIC] [--save WHAT] [options of fairseq-generate]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="DATA.tsv", help="rows like those that will be generated for")
    add("--checkpoint", required=True, metavar="CKPT", help="of fairseq-train, or OFA's")
    add("--out", required=True, type=Path, metavar="FILE.json", help="file to write")
    add(
        "--keep",
        type=float,
        default=0.96,
        help="share of the full model's quality to keep, above 0, at most 1 (default: %(default)s)",
    )
    add(
        "--confidence",
        type=float,
        default=0.95,
        help="probability that the promise holds, above 0.5, below 1 (default: %(default)s)",
    )
    add("--metric", choices=METRICS, default=METRICS[0], help="loss (default: %(default)s)")
    add("--save", choices=SAVINGS, default=SAVINGS[0], help="cost (default: %(default)s)")
    return parser


@prints_errors("calibrate", resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args, arguments = parser.parse_known_args(argv)
    if not 0 < args.keep <= 1:
        parser.error(f"--keep {args.keep:g}: give a share above 0 and at most 1, as in 0.96")
    if not 0.5 < args.confidence < 1:
        parser.error(
            f"--confidence {args.confidence:g}: give a share above 0.5 and below 1, as in 0.95"
        )
    if args.out.suffix != ".json":
        parser.error(f"--out {args.out}: name a file that ends in .json")
    # Slow, so not for --help.
    from ofa_exit.cli.calibrate.run import run

    return run(args, arguments, parser.prog)

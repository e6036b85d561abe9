"""Split a validation file into rows to train on and held-out rows.

BLIPEE trains on 80 % of each validation split and develops on the rest (Section 4, Training).
OUT/train.tsv gets the rows of those images in the form of training data, OUT/valid.tsv the other
rows unchanged. All rows of an image go to one side. The paper does not say so, but an image on
both sides would not test anything. The image ids alone decide, so every run splits alike.
"""

from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.prepare.holdout import KINDS, part
from ofa_exit.regular_files import check_output


@prints_errors("holdout", ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("holdout", __doc__)
    parser.add_argument(
        "kind", choices=KINDS, help="kind of rows: COCO's, those of the VQA data sets, or VisDial's"
    )
    parser.add_argument(
        "source", type=Path, metavar="VALID.tsv", help="file written by ofa-exit prepare"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--share",
        type=float,
        default=0.8,
        help="share of the images to train on (default: %(default)s)",
    )
    parser.add_argument(
        "--candidates", type=Path, metavar="answers.txt", help="train on these answers only"
    )
    args = parser.parse_args(argv)
    for name in ("train.tsv", "valid.tsv"):
        check_output("OUT:", args.out / name, args.source)
    print(part(args.kind, args.source, args.out, args.share, args.candidates))
    return 0

"""Write one row per image with all of its captions.

This is the training data of the CIDEr stage (--criterion mue_scst), as OFA's
caption_stage2_train.tsv. The first row of an image gets the captions of all of its rows, joined by
&&. Rows keep their order and their other columns.
"""

from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import add_caption_columns, check_outputs, new_parser, prints_errors
from ofa_exit.data.tsv import TsvFile


@prints_errors("references", ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("references", __doc__)
    parser.add_argument(
        "train", type=Path, metavar="TRAIN.tsv", help="caption rows, any number per image"
    )
    parser.add_argument("out", type=Path, metavar="OUT.tsv", help="file to write")
    add_caption_columns(parser)
    parser.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="further captions: a TSV file of image id and captions joined by &&",
    )
    args = parser.parse_args(argv)
    check_outputs(args, "out")
    # Slow, so after the parse.
    from ofa_exit.prepare.references import COLUMNS, captions_by_image, group

    more = None
    if args.references is not None:
        more = captions_by_image(TsvFile(args.references, None, COLUMNS))
    rows, captions = group(TsvFile(args.train, args.selected_cols, COLUMNS), args.out, more)
    print(f"{args.out}: {rows} images, {captions} captions")
    return 0

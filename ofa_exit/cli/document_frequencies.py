"""Count in how many training images each n-gram of one to four words occurs.

The counts weight the n-grams of CIDEr-D rewards: --cider-frequencies of --criterion mue_scst.
An n-gram counts once per image, in whichever reference it occurs. Rows of one image are one
document.
"""

from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import add_caption_columns, check_outputs, new_parser, prints_errors
from ofa_exit.data.files import atomic_write
from ofa_exit.data.tsv import TsvFile


@prints_errors("document-frequencies", ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("document-frequencies", __doc__)
    parser.add_argument(
        "train",
        metavar="TRAIN.tsv[,…]",
        help="captioning data, one or several files; && separates captions of one row",
    )
    parser.add_argument("out", type=Path, metavar="OUT.npz", help="file to write")
    add_caption_columns(parser)
    args = parser.parse_args(argv)
    check_outputs(args, "out")
    # Slow, so after the parse.
    from ofa_exit.evaluation.metrics.cider_d import DocumentFrequencies
    from ofa_exit.prepare.references import COLUMNS, captions_by_image

    captions: dict[str, list[str]] = {}
    for path in args.train.split(","):
        file = TsvFile(path.strip(), args.selected_cols, COLUMNS)
        for image, found in captions_by_image(file).items():
            captions.setdefault(image, []).extend(found)
    if len(captions) < 2:  # the logarithm of their number scales every score
        raise ValueError(f"{args.train}: CIDEr-D needs the references of two images or more")
    frequencies = DocumentFrequencies.of(captions.values())
    with atomic_write(args.out) as stream:
        frequencies.save(stream)
    print(f"{args.out}: {len(frequencies.counts)} n-grams of {frequencies.images} images")
    return 0

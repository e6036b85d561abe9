"""``ofa-exit document-frequencies TRAIN.tsv[,…] OUT.npz``: for CIDEr-D rewards.

Counts in how many training images each n-gram of one to four words occurs in some reference, once,
for ``--cider-frequencies`` of ``--criterion mue_scst``. Rows of one image are one document.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.data.files import atomic_write
from ofa_exit.data.tsv import TsvFile
from ofa_exit.evaluation.metrics.cider_d import DocumentFrequencies
from ofa_exit.prepare.references import COLUMNS, OFFICIAL_COLS, captions_by_image


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ofa-exit document-frequencies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "train", help="captioning data, files separated by commas; captions may be joined by &&"
    )
    parser.add_argument("out", type=Path, help="npz file to write")
    parser.add_argument(
        "--selected-cols",
        default=OFFICIAL_COLS,
        metavar="I,C",
        help="numbers of the columns image-id and caption (default %(default)s, those of OFA)",
    )
    given = parser.parse_args(arguments)
    try:
        captions: dict[str, list[str]] = {}
        for path in given.train.split(","):
            file = TsvFile(path.strip(), given.selected_cols, COLUMNS)
            for image, found in captions_by_image(file).items():
                captions.setdefault(image, []).extend(found)
        frequencies = DocumentFrequencies.of(captions.values())
        with atomic_write(given.out) as stream:
            frequencies.save(stream)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {len(frequencies.counts)} n-grams of {frequencies.images} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())

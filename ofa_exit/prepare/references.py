"""``ofa-exit references TRAIN.tsv OUT.tsv``: a row an image, with all captions.

Training data of the CIDEr stage (``--criterion mue_scst``), as OFA's caption_stage2_train.tsv: the
captions of all rows of an image, joined by && in its first row. Rows keep their order and their
other columns.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ofa_exit.data.caption import SEPARATOR
from ofa_exit.data.files import atomic_write
from ofa_exit.data.text import strip_punctuation
from ofa_exit.data.tsv import TsvError, TsvFile

COLUMNS = ("image_id", "caption")
# Of OFA's captioning files: uniq-id, image-id, caption, predicted objects, image.
OFFICIAL_COLS = "1,2"


def captions_by_image(file: TsvFile) -> dict[str, list[str]]:
    """Return the distinct captions of every image, in order.

    Args:
        file: a file opened with ``COLUMNS``.

    Raises TsvError for a caption without words, or a row without an image id.
    """
    captions: dict[str, dict[str, None]] = {}
    for index in tqdm(range(len(file)), desc=file.path.name, unit="row", disable=None):
        row = file.row(index)
        if not row["image_id"].strip():
            raise file.error(index, "image_id", "no image id", "Fill it in, or choose the column")
        found = captions.setdefault(row["image_id"], {})
        for part in row["caption"].split(SEPARATOR):
            caption = " ".join(part.split())
            if not strip_punctuation(caption):
                raise file.error(
                    index, "caption", "a caption has no words", "Fill it in or remove it"
                )
            found[caption] = None
    return {image: list(distinct) for image, distinct in captions.items()}


def group(file: TsvFile, out: Path, more: dict[str, list[str]] | None = None) -> tuple[int, int]:
    """Write the grouped rows, with ``more`` captions of images. Return numbers of both."""
    captions = captions_by_image(file)
    for image, further in (more or {}).items():
        if image in captions:
            captions[image] = list(dict.fromkeys([*captions[image], *further]))
    total, rows = sum(map(len, captions.values())), len(captions)
    image_column, caption_column = map(file.column_of, COLUMNS)
    with atomic_write(out) as stream:
        for index in tqdm(range(len(file)), desc=out.name, unit="row", disable=None):
            fields = file.fields(index)
            references = captions.pop(fields[image_column], None)
            if references is not None:
                fields[caption_column] = SEPARATOR.join(references)
                stream.write(("\t".join(fields) + "\n").encode())
    return rows, total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ofa-exit references",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("train", type=Path, help="captioning data, one or several rows an image")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument(
        "--selected-cols",
        default=OFFICIAL_COLS,
        metavar="I,C",
        help="numbers of the columns image-id and caption (default %(default)s, those of OFA)",
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="further captions: a TSV file of image-id and captions joined by &&",
    )
    given = parser.parse_args(arguments)
    try:
        more = None
        if given.references is not None:
            more = captions_by_image(TsvFile(given.references, None, COLUMNS))
        rows, captions = group(TsvFile(given.train, given.selected_cols, COLUMNS), given.out, more)
    except (TsvError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {rows} images, {captions} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())

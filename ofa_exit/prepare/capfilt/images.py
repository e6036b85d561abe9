"""Write one row per image, to sample captions for: a caption TSV has one row per caption."""

import os
from pathlib import Path

from tqdm import tqdm

from ofa_exit.data.caption import COLUMNS
from ofa_exit.data.files import atomic_write
from ofa_exit.data.formats import CAPTION_COLS
from ofa_exit.data.tsv import TsvFile

NO_CAPTION = "unlabelled"


def write_images(
    tsv: str | os.PathLike[str],
    out: Path,
    selected_cols: str = CAPTION_COLS,
    image_id_column: int = 1,
) -> tuple[int, int]:
    """Copy the first row of each image to ``out``, atomically.

    An empty caption becomes NO_CAPTION, because fairseq-generate needs a reference in every row.

    Returns:
        The numbers of images and of rows.
    Raises:
        TsvError: a row cannot be read.
    """
    file = TsvFile(tsv, selected_cols, COLUMNS)
    if not 0 <= image_id_column < file.width:
        raise ValueError(f"{tsv} has {file.width} columns and no column {image_id_column}, from 0")
    caption = file.column_of("caption")
    seen: set[str] = set()
    with atomic_write(out) as stream:
        for row in tqdm(range(len(file)), desc=out.name, unit="row"):
            fields = file.fields(row)
            if fields[image_id_column] in seen:
                continue
            seen.add(fields[image_id_column])
            fields[caption] = fields[caption].strip() or NO_CAPTION
            stream.write(("\t".join(fields) + "\n").encode("utf-8"))
    return len(seen), len(file)

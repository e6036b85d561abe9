"""One row per image, with all of its captions: ``ofa-exit references``."""

from pathlib import Path

from tqdm import tqdm

from ofa_exit.data.files import atomic_write
from ofa_exit.data.formats import SEPARATOR
from ofa_exit.data.text import strip_punctuation
from ofa_exit.data.tsv import TsvFile

COLUMNS = ("image_id", "caption")


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

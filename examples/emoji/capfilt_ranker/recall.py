"""Recall@1 of a ranker: how often the nearest caption, or image, is the right one."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from ofa_exit.data.formats import SEPARATOR
from ofa_exit.data.images import ImageError, decode_image
from ofa_exit.data.text import strip_punctuation
from ofa_exit.data.tsv import TsvFile
from ofa_exit.prepare.capfilt.rankers import Ranker

CHUNK_ROWS = 512  # of the similarity matrix


def pairs(file: TsvFile) -> Iterator[tuple[Image, list[str]]]:
    """Yield each row's image and captions; raise TsvError if one of them is missing."""
    for index in range(len(file)):
        row = file.row(index)
        captions = [strip_punctuation(part) for part in row["caption"].split(SEPARATOR)]
        captions = [caption for caption in captions if caption]
        if not captions:
            raise file.error(index, "caption", "there are no words", "Fill it in or remove the row")
        try:
            image = decode_image(row["image"], file.path.parent)
        except ImageError as error:
            raise file.error(index, "image", error.message, error.remedy) from error
        yield image, captions


def recall_at_1(images: Tensor, texts: Tensor, owners: Tensor) -> tuple[float, float]:
    """Return the shares of images whose nearest text is theirs, and of texts likewise.

    Args:
        images, texts: Float [N, D] and [M, D], rows of length 1.
        owners: Bool [N, M], True where text j is a caption of image i; equal captions of different
            images count for all of them.
    """
    hits = [0, 0]
    for direction, (rows, columns, right) in enumerate(
        ((images, texts, owners), (texts, images, owners.t()))
    ):
        for start in range(0, len(rows), CHUNK_ROWS):
            nearest = (rows[start : start + CHUNK_ROWS] @ columns.t()).argmax(dim=1, keepdim=True)
            hits[direction] += int(right[start : start + CHUNK_ROWS].gather(1, nearest).sum())
    return hits[0] / len(images), hits[1] / len(texts)


def evaluate(
    ranker: Ranker, file: TsvFile, batch_size: int = 64, show: bool = True
) -> tuple[float, float, int]:
    """Return recall@1 from image to text and from text to image, and the number of rows."""
    images = []
    captions: list[Sequence[str]] = []
    with tqdm(total=len(file), desc=file.path.name, unit="row", disable=not show) as bar:
        rows = pairs(file)
        while batch := list(islice(rows, batch_size)):
            images.append(ranker.embed_images([image for image, _ in batch]))
            captions += [texts for _, texts in batch]
            bar.update(len(batch))
    # Each text once; every image that has it as a caption owns it.
    distinct = list(dict.fromkeys(text for texts in captions for text in texts))
    column = {text: number for number, text in enumerate(distinct)}
    embedded = [
        ranker.embed_texts(distinct[start : start + batch_size])
        for start in range(0, len(distinct), batch_size)
    ]
    owners = torch.zeros(len(captions), len(distinct), dtype=torch.bool)
    for row, texts in enumerate(captions):
        owners[row, [column[text] for text in texts]] = True
    image_rows = torch.cat(images)
    recalls = recall_at_1(image_rows, torch.cat(embedded), owners.to(image_rows.device))
    return *recalls, len(captions)

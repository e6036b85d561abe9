"""Recall@1 of a ranker on pairs: how often the nearest caption, or image, is the right one."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from ofa_exit.data.caption import SEPARATOR
from ofa_exit.data.images import ImageError, decode_image
from ofa_exit.data.text import strip_punctuation
from ofa_exit.data.tsv import TsvFile
from ofa_exit.prepare.capfilt.rankers import Ranker

_CHUNK = 512  # rows of the similarity matrix at once


def pairs(file: TsvFile) -> Iterator[tuple[Image, list[str]]]:
    """Each row's picture and captions. Raises TsvError for a row that lacks one of them."""
    for index in range(len(file)):
        row = file.row(index)
        captions = [strip_punctuation(part) for part in row["caption"].split(SEPARATOR)]
        captions = [caption for caption in captions if caption]
        if not captions:
            raise file.error(index, "caption", "there are no words", "Fill it in or remove the row")
        try:
            image = decode_image(row["image"])
        except ImageError as error:
            raise file.error(index, "image", error.message, error.remedy) from error
        yield image, captions


def recall_at_1(images: Tensor, texts: Tensor, owners: Tensor) -> tuple[float, float]:
    """Share of images whose nearest text is theirs, and of texts whose nearest image is theirs.

    images [N, D], texts [M, D], rows of length 1; owners: Bool [N, M], True where text j is one of
    image i's captions. Equal captions of different images are all right.
    """
    hits = [0, 0]
    for at, (rows, columns, right) in enumerate(
        ((images, texts, owners), (texts, images, owners.t()))
    ):
        for start in range(0, len(rows), _CHUNK):
            nearest = (rows[start : start + _CHUNK] @ columns.t()).argmax(dim=1, keepdim=True)
            hits[at] += int(right[start : start + _CHUNK].gather(1, nearest).sum())
    return hits[0] / len(images), hits[1] / len(texts)


def evaluate(
    ranker: Ranker, file: TsvFile, batch_size: int = 64, show: bool = True
) -> tuple[float, float, int]:
    """Recall@1 from image to text and from text to image, and the number of rows."""
    images = []
    captions: list[Sequence[str]] = []
    with tqdm(total=len(file), desc=file.path.name, unit="row", disable=not show) as bar:
        rows = pairs(file)
        while batch := list(islice(rows, batch_size)):
            images.append(ranker.embed_images([image for image, _ in batch]))
            captions += [of for _, of in batch]
            bar.update(len(batch))
    # Each text once: whoever has it as a caption owns it.
    places = {text: at for at, text in enumerate(dict.fromkeys(t for of in captions for t in of))}
    names = list(places)
    texts = [
        ranker.embed_texts(names[start : start + batch_size])
        for start in range(0, len(names), batch_size)
    ]
    owners = torch.zeros(len(captions), len(names), dtype=torch.bool)
    for row, of in enumerate(captions):
        owners[row, [places[text] for text in of]] = True
    seen = torch.cat(images)
    return *recall_at_1(seen, torch.cat(texts), owners.to(seen.device)), len(captions)

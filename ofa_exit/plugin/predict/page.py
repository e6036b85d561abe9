"""The page of coloured words: predictions with their images, as one HTML file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from ofa_exit.data.formats import MAX_PIXELS
from ofa_exit.data.images import ImageError
from ofa_exit.data.own_images import ImageLike
from ofa_exit.data.thumbnails import png_of
from ofa_exit.evaluation.figures.case_page import case_page
from ofa_exit.evaluation.figures.cases import Case
from ofa_exit.plugin.errors import PredictionError
from ofa_exit.plugin.predict.result import Prediction


def write_page(
    path: str | os.PathLike[str],
    predictions: Sequence[Prediction],
    images: Optional[Sequence[ImageLike | bytes]] = None,
    *,
    max_image_pixels: int = MAX_PIXELS,
) -> None:
    """Write a page of the words of predictions, each in the colour of its exit layer.

    The page needs no other file. Predictions with ``error`` are left out.

    Args:
        path: of the HTML file, whose folder exists.
        predictions: of one model.
        images: one per prediction, a path, an image of Pillow or a PNG file's bytes (default: the
            paths in the predictions).
        max_image_pixels: largest image file to read, width times height.

    Raises:
        PredictionError: an image cannot be read, or the page cannot be written.
    """
    if images is None:
        images = [one.image for one in predictions]
    if len(images) != len(predictions):
        raise PredictionError(
            f"{len(images)} images for {len(predictions)} predictions: give one per prediction"
        )
    cases = []
    for one, image in zip(predictions, images):
        if one.error is not None:
            continue
        try:
            thumbnail = png_of(image, max_image_pixels)
        except ImageError as error:
            raise PredictionError(
                f"{one.image}: {error}. An image without a file is given as one of images"
            ) from error
        cases.append(Case(one.image, thumbnail, one.source, [], [one.answer()]))
    depth = max((one.depth for one in predictions), default=0)
    try:
        Path(path).write_text(case_page(cases, depth), encoding="utf-8")
    except OSError as error:
        raise PredictionError(
            f"{os.fspath(path)}: the page cannot be written ({error.strerror}). Choose another file"
        ) from error

"""Values of images and of the sentences that share them."""

from typing import Optional

from torch import Tensor


def per_image(values: Tensor, images: int, image_rows: Optional[Tensor]) -> Tensor:
    """Return values [S, …] of sentences, equal where they share an image, as those [I, …]."""
    if image_rows is None:
        return values
    return values.new_zeros(images, *values.shape[1:]).index_copy(0, image_rows, values)


def per_sentence(values: Tensor, image_rows: Optional[Tensor]) -> Tensor:
    """Return values [I, …] of images as values [S, …] of the sentences that have them."""
    return values if image_rows is None else values[image_rows]

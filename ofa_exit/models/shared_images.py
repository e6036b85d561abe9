"""Values of images and texts, and of the sentences that share them."""

from typing import Optional

from torch import Tensor


def per_image(values: Tensor, images: int, image_rows: Optional[Tensor]) -> Tensor:
    """Return values [S, …] of sentences, equal where they share an image, as those [I, …].

    Args:
        image_rows: Long [S], the image of each sentence; None if each has its own.
    """
    if image_rows is None:
        return values
    return values.new_zeros(images, *values.shape[1:]).index_copy(0, image_rows, values)


def per_sentence(values: Tensor, rows: Optional[Tensor]) -> Tensor:
    """Return values [U, …] of images or texts as values [S, …] of the sentences that have them.

    Args:
        rows: Long [S], the image or text of each sentence; None if each has its own.
    """
    return values if rows is None else values[rows]

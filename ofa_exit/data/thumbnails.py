"""Small images of pages."""

import io

from PIL import Image

from ofa_exit.data.own_images import ImageLike, read_image

IMAGE_PIXELS = 320
"""Longest side of an image in a page."""


def png(image: Image.Image) -> bytes:
    """Return an image, scaled down in place, as a PNG file."""
    buffer = io.BytesIO()
    image.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def png_of(image: ImageLike | bytes, max_pixels: int) -> bytes:
    """Return a user's image as a small PNG file. Bytes are one already.

    Raises ImageError: the image cannot be read (see `read_image`).
    """
    if isinstance(image, bytes):
        return image
    return png(read_image(image, max_pixels).copy())  # the user's own is left as it is

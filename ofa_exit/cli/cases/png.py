"""Images of the page of cases."""

import io

from PIL import Image

IMAGE_PIXELS = 320
"""Longest side of an image in the page."""


def png(image: Image.Image) -> bytes:
    """Return an image, scaled down in place, as a PNG file."""
    buffer = io.BytesIO()
    image.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS))
    image.save(buffer, "PNG")
    return buffer.getvalue()

"""Images of TSV fields, base64 or the path of an image file, to a normalised float tensor."""

import base64
import binascii
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms

from ofa_exit.data.formats import FORMATS, MAX_PIXELS, UNSUPPORTED_SUFFIXES
from ofa_exit.data.image_checksums import verify_checksums
from ofa_exit.regular_files import regular_file

MEAN_STD = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# The first bytes of JPEG, PNG, GIF, WebP (RIFF) and TIFF in base64.
_BASE64_STARTS = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_LONGEST_PATH = 4096  # characters; not all of a base64 text is searched
_EXCERPT = 60  # characters of a field that a message shows
_EXIF_ORIENTATION = 0x0112
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit: decode_image checks the size in the header


class ImageError(ValueError):
    """A field without a usable image; ``remedy`` says what to do about it."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}"


def looks_like_image(field: str) -> bool:
    """Return whether a field begins like the base64 text of an image file."""
    return len(field) > 40 and field.startswith(_BASE64_STARTS) and " " not in field


def is_path(field: str) -> bool:
    """Return whether a field is a path: it has a dot, as in cat.jpg, which base64 never has."""
    return "." in field[:_LONGEST_PATH]


def decode_image(
    field: str, folder: str | os.PathLike = ".", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a field to an RGB image.

    The field is base64 (plain or URL-safe) of an image file's bytes, or the path of the file,
    relative to ``folder``.

    Raises ImageError: neither of them, or as `decode_bytes` does.
    """
    if is_path(field):
        return decode_bytes(read_file(field.strip(), folder), max_pixels, field.strip())
    return decode_bytes(_decode_base64(field), max_pixels)


def decode_bytes(data: bytes, max_pixels: int = MAX_PIXELS, path: str = "") -> Image.Image:
    """Decode the bytes of an image file to an RGB image.

    The image is rotated by its EXIF orientation. Transparent parts become white, an animation its
    first frame, and 16-bit grey is scaled to 8 bits.
    Differs from OFA, which ignores orientation, transparency and the checksums of a PNG file, and
    pads a truncated file with grey.

    Args:
        path: of the file, whose suffix names an unsupported format in the error.

    Raises ImageError: not an image, broken or truncated, or more than ``max_pixels`` (read from the
    header, so that a decompression bomb is never unpacked).
    """
    suffix = Path(path).suffix.lower()
    unsupported = ImageError(f"{suffix[1:].upper()} images are unsupported", "Convert it to JPEG")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # on arbitrary bytes the parsers raise nearly anything
        if suffix in UNSUPPORTED_SUFFIXES:
            raise unsupported from error
        raise ImageError(
            "the bytes are not an image", f"Use one of {', '.join(FORMATS)}"
        ) from error
    if suffix in UNSUPPORTED_SUFFIXES and image.format == "TIFF":  # the preview of a raw file
        raise unsupported
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"the image has {image.width}x{image.height} pixels, more than {max_pixels:,}",
            "Scale it down, or raise --max-image-pixels",
        )
    with _broken_images():
        verify_checksums(image, data)
    return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image upright and in RGB, see `decode_bytes`. Raises ImageError if it is broken."""
    with _broken_images():
        image.load()
        return _to_rgb(_upright(image))


@contextlib.contextmanager
def _broken_images() -> Iterator[None]:
    """Turn what Pillow raises about a broken image into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"the image is broken ({str(error) or type(error).__name__})", "Replace the file"
        ) from error


def image_transform(size: int, mean_std: str = "half") -> Callable[[Image.Image], Tensor]:
    """Return OFA's transform: bicubic resize to size × size, then (x - mean) / std, x in [0, 1].

    The transform returns Float [3, size, size].

    Args:
        mean_std: "half" (mean and std of 0.5) or "imagenet".
    """
    return transforms.Compose(
        [
            transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC),
            # ToTensor in two steps gives the same numbers without an extra copy.
            transforms.PILToTensor(),  # uint8 [3, size, size]
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(*MEAN_STD[mean_std], inplace=True),
        ]
    )


class ImageLoader:
    """Loads a field as Float [3, size, size]; an empty field, a row without image, gives None."""

    def __init__(self, size: int, mean_std: str = "half", max_pixels: int = MAX_PIXELS):
        self._transform = image_transform(size, mean_std)
        self._max_pixels = max_pixels

    def __call__(self, field: str, folder: str | os.PathLike = ".") -> Tensor | None:
        """Load the image of a field. Raises ImageError as `decode_image` does."""
        if not field.strip():
            return None
        return self._transform(decode_image(field, folder, self._max_pixels))


def read_file(path: str, folder: str | os.PathLike) -> bytes:
    """Return the bytes of an image file, whose path is relative to ``folder``.

    Raises ImageError if it cannot be read.
    """
    try:
        return regular_file(Path(folder, path)).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"the image file {_excerpt(path)!r} cannot be read from {folder} ({reason})",
            "Paths are relative to the folder of the file that names them",
        ) from None


def _excerpt(field: str) -> str:
    text = field.strip()
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


def _decode_base64(field: str) -> bytes:
    # Some encoders omit the padding.
    text = field.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"{_excerpt(field)!r} is not base64 ({error})",
            "Encode the bytes of an image file as base64, or give its path with its extension",
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        # A plain conversion would clip at 255.
        grey = image.convert("I").point(lambda value: value * (1 / 256))
        return grey.convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            "the image has 32-bit pixels of unknown scale", "Save it with 8 bits per channel"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, "white")
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # unreadable EXIF data do not make the image unusable
        return image
    return ImageOps.exif_transpose(image) if orientation != 1 else image

"""Images that a user names: paths and Pillow's images, without a data file."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from ofa_exit.data.formats import IMAGE_SUFFIXES
from ofa_exit.data.images import ImageError, decode_bytes, upright_rgb

ImageLike = str | os.PathLike[str] | Image.Image


def read_image(image: ImageLike) -> Image.Image:
    """Return an image upright and in RGB.

    Raises ImageError: no such file, not readable, or no usable image (see `decode_bytes`).
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError(f"the file cannot be read ({reason})", "Check the path") from error
    return decode_bytes(data)


def image_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Return one image or several as a list. Raises ValueError: neither paths nor images."""
    several = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else list(images)
    for image in several:
        if not isinstance(image, (str, os.PathLike, Image.Image)):
            raise ValueError(
                f"images: give paths or Pillow's images, not {type(image).__name__} "
                "(PIL.Image.fromarray makes one of an array)"
            )
    return several


def image_name(image: ImageLike, number: int) -> str:
    """Return what an image is called in results: its path, or its ``number`` from 1."""
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"image {number}"
    return os.fspath(image)


def find_images(patterns: Sequence[str]) -> list[str]:
    """Return the image files of files, folders and globs, each once.

    A file is taken whatever its name. Of a folder, and of a folder that a glob matches, the files
    with an image's suffix are taken in alphabetical order, hidden ones and sub-folders left out.

    Raises ValueError: there is no such file, or no image in a folder.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        # A name such as "[1].jpg" may be a file, too.
        matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        if not matches:
            kind = "no file matches it" if glob.has_magic(pattern) else "no such file or folder"
            raise ValueError(f"{pattern}: {kind}. Check the path")
        for match in sorted(matches):
            if not os.path.isdir(match):
                found[match] = None
            elif images := list(_of_folder(match)):
                found.update(dict.fromkeys(images))
            elif match == pattern:
                raise ValueError(
                    f"{pattern}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)}). For its "
                    f"sub-folders give '{os.path.join(pattern, '**', '*.jpg')}'"
                )
    if not found:
        raise ValueError(f"{', '.join(patterns)}: no image found. Check the path")
    return list(found)


def _of_folder(folder: str) -> Iterator[str]:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        is_image = name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        if is_image and os.path.isfile(path):
            yield path

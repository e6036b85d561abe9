"""Images that a user names: paths and Pillow's images, without a data file."""

import glob
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from ofa_exit.data.formats import IMAGE_SUFFIXES, MAX_PIXELS, UNSUPPORTED_SUFFIXES
from ofa_exit.data.images import ImageError, decode_bytes, upright_rgb
from ofa_exit.regular_files import regular_file

ImageLike = str | os.PathLike[str] | Image.Image
OnRead = Callable[[str, Image.Image], None]
_open_images = threading.Lock()  # two of a user's open images may read one file


def read_image(image: ImageLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image upright and in RGB.

    A Pillow image is open already, and may be of any size.

    Raises ImageError: no such file, not readable, or no usable image (see `decode_bytes`).
    """
    if isinstance(image, Image.Image):
        with _open_images:
            return upright_rgb(image)
    if os.path.isdir(image):
        raise ImageError("it is a folder", "Give its files, as in glob.glob('photos/*.jpg')")
    try:
        data = regular_file(image).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError(f"the file cannot be read ({reason})", "Check the path") from error
    return decode_bytes(data, max_pixels, os.fspath(image))


def image_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """Return one image or several as a list. Raises ValueError: neither paths nor images."""
    if images is None:
        raise ValueError("images: give a path or one of Pillow's images, or several, not None")
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


def is_image_name(name: str) -> bool:
    """Return whether a file is an image by its name, in a supported format or not."""
    suffixes = (*IMAGE_SUFFIXES, *UNSUPPORTED_SUFFIXES)
    return name.lower().endswith(suffixes) and not name.startswith(".")


def find_images(patterns: Sequence[str], recursive: bool = False) -> list[str]:
    """Return the image files of files, folders and globs, each once.

    A file is taken whatever its name. Of a folder, and of a folder that a glob matches, the files
    with an image's suffix are taken in alphabetical order, hidden ones and sub-folders left out.
    Those of unsupported formats are taken, too, so that reading them reports them.

    Args:
        recursive: take the images of sub-folders, too, as ``ofa-exit tsv`` does.

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
            elif images := list(_of_folder(match, recursive)):
                found.update(dict.fromkeys(images))
            elif match == pattern:
                remedy = "Check the path" if recursive else "For its sub-folders add --recursive"
                raise ValueError(
                    f"{pattern}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)}). {remedy}"
                )
    if not found:
        raise ValueError(f"{', '.join(patterns)}: no image found. Check the path")
    return list(found)


def _of_folder(folder: str, recursive: bool) -> Iterator[str]:
    for parent, children, names in os.walk(folder):
        # In place, so that the walk skips the others.
        children[:] = sorted(one for one in children if recursive and not one.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)
            if is_image_name(name) and os.path.isfile(path):
                yield path

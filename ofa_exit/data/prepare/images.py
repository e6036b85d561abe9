"""Files of the official releases, found by name below the folders given."""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ofa_exit.data.formats import FORMATS

from .records import PrepareError


class BrokenImageError(Exception):
    """A file that is no image, or cannot be read."""


class Files:
    """Every file below ``folders``, by name; memory: the names.

    Of images with one name the first counts, folders in the order given and sorted within.
    Raises PrepareError for a folder that is none.
    """

    def __init__(self, folders: Iterable[Path]):
        self.folders = list(dict.fromkeys(folders))
        self._paths: dict[str, list[str]] = {}
        for folder in self.folders:
            if not folder.is_dir():
                raise PrepareError(f"{folder} is no folder. Give the folder of the unpacked files")
            for parent, children, names in os.walk(folder, followlinks=True):
                children.sort()
                for name in sorted(names):
                    self._paths.setdefault(name, []).append(parent)

    def image(self, names: Iterable[str]) -> Path | None:
        """The first of ``names`` that there is."""
        for name in names:
            if name in self._paths:
                return Path(self._paths[name][0], name)
        return None

    def annotation(self, *wanted: str) -> Path | None:
        """The one file that ends in the first of ``wanted`` (FOLDER/NAME or NAME) that there is.

        Raises PrepareError when there are several: they may differ.
        """
        for ending in wanted:
            name = Path(ending).name
            found = dict.fromkeys(
                Path(parent, name)
                for parent in self._paths.get(name, ())
                if Path(parent, name).as_posix().endswith(f"/{ending}") or ending == name
            )
            if len(found) > 1:
                raise PrepareError(
                    f"{name} is there more than once: {', '.join(map(str, found))}. "
                    "Give a narrower folder, or remove all but one"
                )
            if found:
                return next(iter(found))
        return None


@functools.lru_cache(maxsize=64)  # rows of one image stand together, or nearly
def encode_image(path: Path) -> str:
    """Url-safe base64 of the file's bytes, as OFA's release holds images.

    The header is read, the picture not decoded: the data loader does that on every read.
    Raises BrokenImageError: unreadable, empty, or no image.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.verify()
    except Exception as error:  # foreign bytes make the parsers raise nearly anything
        raise BrokenImageError(f"{path} is no readable image ({error})") from error
    return base64.urlsafe_b64encode(data).decode("ascii")


def encoded_length(path: Path) -> int:
    """Characters of ``encode_image(path)``, told from the file's size."""
    return -(-path.stat().st_size // 3) * 4

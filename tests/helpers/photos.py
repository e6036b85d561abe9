"""The images of small data files as files of their own."""

from __future__ import annotations

import base64
from pathlib import Path

from helpers import task_files as files


def write_photos(folder: Path, count: int) -> list[str]:
    """Write the images of the first rows; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02}.png" for number in range(count)]
    for number, path in enumerate(paths):
        field = files.image_field(files.COLOURS[number % len(files.COLOURS)])
        path.write_bytes(base64.urlsafe_b64decode(field))
    return list(map(str, paths))

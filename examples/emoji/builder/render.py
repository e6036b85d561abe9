"""SVG to small raster pictures, with a cache."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ofa_exit.data.files import write_bytes

from .errors import EmojiDataError

BACKGROUND = "white"


def rasterise(svg: str, size: int) -> Image.Image:
    """Render an RGB picture of `size`×`size` pixels, the drawing centred on white."""
    try:
        import resvg_py
    except ImportError as error:
        raise EmojiDataError(
            "resvg-py is not installed; it renders the SVG artwork. "
            "Install it with `pip install 'ofa-exit[emoji]'` (or `pip install resvg-py`)."
        ) from error
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background=BACKGROUND, skip_system_fonts=True
    )
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if picture.size == (size, size):
        return picture
    # A drawing that is not square comes back smaller in one direction.
    canvas = Image.new("RGB", (size, size), BACKGROUND)
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return canvas


def encode_webp(picture: Image.Image, quality: int | None) -> bytes:
    """Encode as WebP: lossless if `quality` is None, else lossy with quality 0 to 100."""
    stream = io.BytesIO()
    if quality is None:
        picture.save(stream, "WEBP", lossless=True, method=6)
    else:
        picture.save(stream, "WEBP", quality=quality, method=6)
    return stream.getvalue()


class RenderCache:
    """Lossless renderings as files, so that a second build renders nothing."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder / f"{size}px-{BACKGROUND}"
        self.size = size

    def get(self, group: str, name: str, svg: str) -> bytes:
        """Return the WebP of picture `name` of artwork `group`; render it on the first request."""
        path = self.folder / group / f"{name}.webp"
        if path.is_file():
            return path.read_bytes()
        try:
            content = encode_webp(rasterise(svg, self.size), None)
        except ValueError as error:
            raise EmojiDataError(f"{group}/{name}: the SVG cannot be rendered ({error})") from error
        write_bytes(path, content)
        return content

"""Image files with flipped, missing and foreign bytes: the right pixels, or an ImageError."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers import fuzzing
from helpers.fuzzing import BYTE_EDITS, CUTS, FLIPS, attempt, folder_for_one, fuzz, run_verb
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from ofa_exit.data.formats import FORMATS
from ofa_exit.data.images import ImageError, decode_bytes
from ofa_exit.data.own_images import read_image
from ofa_exit.prepare.images import BrokenImageError, encode_image

pytestmark = pytest.mark.slow
SIZE = (24, 18)
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
}
# What is no image of the supported formats, or only begins like one.
FOREIGN = (
    *(b"", b"\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM"),
    *(b"II*\0", b"MM\0*", b"P6\n9 9\n255\n", b"P6 99999 99999 255\n", b"P5\n-1 -1\n255\n"),
    *(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    *(b"\0\0\0\x20ftypheic", b"PK\x03\x04", b"<html>", b"P1\n#" + b"x" * 9_000),
)


def photo(mode: str) -> Image.Image:
    """An image in which neighbouring pixels differ."""
    values = bytes((7 * at * at + at // 5) % 256 for at in range(3 * SIZE[0] * SIZE[1]))
    image = Image.frombytes("RGB", SIZE, values)
    if mode == "RGBA":
        image.putalpha(image.getchannel("G"))
    return image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)


def encoded(file_format: str, mode: str) -> bytes:
    stream = io.BytesIO()
    image = photo(mode)
    if file_format == "WEBP" and mode == "RGB":  # an animation, of which the first frame counts
        image.save(stream, "WEBP", save_all=True, append_images=[photo("RGB").rotate(180)])
    else:
        image.save(stream, file_format)
    return stream.getvalue()


KINDS = [(file_format, mode) for file_format, modes in MODES.items() for mode in modes]
FILES = {kind: encoded(*kind) for kind in KINDS}


def decoded(folder: Path, content: bytes) -> Image.Image | None:
    """The image by each of the three readers, which agree on whether it is usable."""
    path = folder / "own.png"
    path.write_bytes(content)
    image = attempt(folder, "", lambda: decode_bytes(content), ImageError)
    own = attempt(folder, "", lambda: read_image(path), ImageError)
    field = attempt(folder, str(path), lambda: encode_image(path), BrokenImageError)
    assert (image is None) == (own is None)
    if image is not None:
        assert image.mode == "RGB" and image.tobytes() == own.tobytes()
        assert field is not None
    return image


def test_the_files_are_images():
    for content in FILES.values():
        assert decode_bytes(content).mode == "RGB"


def check_pixels(tmp_path, kind, content):
    """A damaged file has the pixels of the whole one, or is rejected."""
    with folder_for_one(tmp_path) as folder:
        image = decoded(folder, content)
        if image is not None:
            assert image.tobytes() == decode_bytes(FILES[kind]).tobytes()


@fuzz(200)
@given(kind=st.sampled_from(KINDS), edits=CUTS)
def test_a_truncated_image_has_all_pixels_or_is_rejected(tmp_path, kind, edits):
    check_pixels(tmp_path, kind, fuzzing.damaged(FILES[kind], edits))


@fuzz(150)
@given(mode=st.sampled_from(MODES["PNG"]), edits=FLIPS)
def test_a_changed_png_has_the_right_pixels_or_is_rejected(tmp_path, mode, edits):
    """Its chunks have checksums."""
    content = fuzzing.damaged(FILES["PNG", mode], edits)
    assume(content != FILES["PNG", mode])
    check_pixels(tmp_path, ("PNG", mode), content)


@fuzz(200)
@given(kind=st.sampled_from(KINDS), edits=BYTE_EDITS)
def test_damaged_bytes_are_decoded_as_by_pillow_or_rejected(tmp_path, kind, edits):
    content = fuzzing.damaged(FILES[kind], edits)
    with folder_for_one(tmp_path) as folder:
        image = decoded(folder, content)
        if image is not None:
            whole = Image.open(io.BytesIO(content), formats=FORMATS)
            assert image.size in (whole.size, whole.size[::-1])  # EXIF may turn it


@fuzz(100)
@given(start=st.sampled_from(FOREIGN), rest=st.one_of(st.just(b""), st.binary(max_size=200)))
def test_other_bytes_are_rejected(tmp_path, start, rest):
    with folder_for_one(tmp_path) as folder:
        decoded(folder, start + rest)


@fuzz(50)
@given(kind=st.sampled_from(KINDS), edits=BYTE_EDITS)
def test_a_folder_with_a_damaged_image_becomes_rows_or_one_line(tmp_path, kind, edits):
    with folder_for_one(tmp_path) as folder:
        (folder / "pipe.png").unlink()
        (folder / "images").mkdir()
        (folder / "images" / "a.jpg").write_bytes(FILES["JPEG", "RGB"])
        (folder / "images" / "b.png").write_bytes(fuzzing.damaged(FILES[kind], edits))
        out = folder / "out.tsv"
        status, _ = run_verb(folder, "", "tsv", str(folder / "images"), str(out))
        assert status in (0, 1) and out.is_file()
        assert run_verb(folder, "", "check", str(out), "--task", "caption", "--use",
                        "generation")[0] == 0  # fmt: skip

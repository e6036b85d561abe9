"""Images that a user names: files, folders, globs, Pillow's images."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from ofa_exit.data.images import ImageError
from ofa_exit.data.own_images import find_images, image_list, image_name, read_image


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.JPG", ".hidden.png", "more/c.png", "[1].png"):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
        (folder / name).write_bytes(buffer.getvalue())
    (folder / "notes.txt").write_text("no image")
    return folder


def names(found, folder):
    return [path.removeprefix(f"{folder}/") for path in found]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([""], ["[1].png", "a.JPG", "b.png"]),
        (["b.png", "a.JPG", "b.png"], ["b.png", "a.JPG"]),  # as given, each once
        (["notes.txt"], ["notes.txt"]),  # its name does not decide
        (["[1].png"], ["[1].png"]),  # a file before it is a pattern
        (["[ab].*"], ["a.JPG", "b.png"]),
        (["**/*.png"], ["[1].png", "b.png", "more/c.png"]),
        (["mor*"], ["more/c.png"]),
    ],
)
def test_files_folders_and_globs(photos, patterns, expected):
    given = [f"{photos}/{pattern}".rstrip("/") for pattern in patterns]
    assert names(find_images(given), photos) == expected


def test_sub_folders(photos, tmp_path):
    (photos / "more" / ".hidden").mkdir()
    (photos / "more" / ".hidden" / "d.png").write_bytes((photos / "b.png").read_bytes())
    expected = ["[1].png", "a.JPG", "b.png", "more/c.png"]
    assert names(find_images([str(photos)], recursive=True), photos) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: the folder holds no image .*Check the path"):
        find_images([str(tmp_path / "empty")], recursive=True)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("photo.png", "photo.png: no such file or folder"),
        ("*.gif", r"\*.gif: no file matches it"),
        ("empty", r"empty: the folder holds no image .*add --recursive"),
    ],
)
def test_nothing_found(photos, pattern, message):
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_images([f"{photos}/{pattern}"])


def test_images_are_upright_and_rgb(tmp_path):
    wide = Image.new("RGB", (6, 2), "blue")
    exif = wide.getexif()
    exif[0x0112] = 6  # turn it by a quarter
    wide.save(tmp_path / "wide.jpg", exif=exif)
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert read_image(tmp_path / "wide.jpg").size == (2, 6)
    assert read_image(Image.open(tmp_path / "wide.jpg")).size == (2, 6)
    assert read_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert clear.mode == "RGBA"  # the user's own stays as it is


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "No such file or directory"),
        ("more", "it is a folder"),
        ("notes.txt", "the bytes are not an image"),
    ],
)
def test_unreadable(photos, name, message):
    with pytest.raises(ImageError, match=message):
        read_image(photos / name)


def test_unsupported_formats_are_found_and_named(photos):
    """Those of phones and cameras; a file that only has such a name is read."""
    raw = Image.new("RGB", (4, 4), "red")
    raw.save(photos / "raw.tif")
    (photos / "raw.tif").rename(photos / "raw.NEF")  # Pillow would read its preview
    (photos / "named.heic").write_bytes((photos / "b.png").read_bytes())
    (photos / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "logo.svg").write_text("<svg/>")
    found = find_images([str(photos)])
    assert {"raw.NEF", "phone.HEIC", "logo.svg", "named.heic"} <= set(names(found, photos))
    assert read_image(photos / "named.heic").size == (4, 4)
    for name, kind in (("raw.NEF", "NEF"), ("phone.HEIC", "HEIC"), ("logo.svg", "SVG")):
        with pytest.raises(ImageError, match=f"{kind} images are unsupported. Convert it to JPEG"):
            read_image(photos / name)


def test_large_images(photos):
    assert read_image(photos / "b.png", max_pixels=16).size == (4, 4)
    with pytest.raises(ImageError, match=r"4x4 pixels, more than 15\. .*--max-image-pixels"):
        read_image(photos / "b.png", max_pixels=15)


def test_names(photos):
    image = Image.new("RGB", (2, 2))
    assert image_list(photos / "b.png") == [photos / "b.png"]
    assert image_list(image) == [image]
    assert image_name(photos / "b.png", 1) == f"{photos}/b.png"
    assert image_name(image, 3) == "image 3"
    assert image_name(Image.open(photos / "b.png"), 1) == f"{photos}/b.png"
    with pytest.raises(ValueError, match="give paths or Pillow's images, not int"):
        image_list([image, 7])

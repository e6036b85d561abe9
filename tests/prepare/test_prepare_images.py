"""The images that preparation accepts."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from helpers import prepare_samples as samples
from PIL import Image

from ofa_exit.data.formats import FORMATS
from ofa_exit.data.images import ImageError, decode_image
from ofa_exit.prepare import images
from ofa_exit.prepare.images import BrokenImageError


def noise(path: Path, **options) -> bytes:
    """Write an image of several kilobytes."""
    picture = Image.effect_noise((160, 120), 80).convert("RGB")
    picture.save(path, **options)
    return path.read_bytes()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"format": "PNG"}, {"format": "WEBP"}]
)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_image_is_broken(tmp_path, options, kept):
    """The data loader would reject it."""
    path = tmp_path / "x.jpg"
    whole = noise(path, **options)
    assert images.encode_image(path)
    images.encode_image.cache_clear()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ImageError):
        decode_image(base64.b64encode(path.read_bytes()).decode())
    with pytest.raises(BrokenImageError, match=r"x\.jpg is not a readable image"):
        images.encode_image(path)


@pytest.mark.parametrize("name", FORMATS)
def test_readable_images_of_all_formats(tmp_path, name):
    for mode in ("RGB", "L"):
        Image.new(mode, (64, 48)).save(tmp_path / mode, name)
        assert images.encode_image(tmp_path / mode)


def test_an_image_too_large_for_the_loader_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 11)
    Image.new("L", (3, 4)).save(tmp_path / "x.jpg")
    with pytest.raises(BrokenImageError, match="3x4 pixels, more than 11"):
        images.encode_image(tmp_path / "x.jpg")


def test_encoded_length_from_file_size(tmp_path):
    for number in range(4):
        samples.jpeg(tmp_path / "x.jpg", number)
        images.encode_image.cache_clear()
        encoded = images.encode_image(tmp_path / "x.jpg")
        assert images.encoded_length(tmp_path / "x.jpg") == len(encoded)

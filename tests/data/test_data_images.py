"""Images of TSV fields: every format is decoded to RGB, and broken ones raise."""

import base64
import io
import pickle
import struct
import warnings
import zlib

import pytest
import torch
from helpers.data_samples import encoded, plain_field
from PIL import Image, features
from torchvision.transforms.functional import pil_to_tensor

from ofa_exit.data.images import (
    ImageError,
    ImageLoader,
    decode_image,
    image_transform,
    looks_like_image,
)
from ofa_exit.prepare.images import BrokenImageError, encode_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def two_colours() -> Image.Image:
    """Red with a blue left half, so that a rotation is visible."""
    image = Image.new("RGB", (8, 4), "red")
    image.paste("blue", (0, 0, 4, 4))
    return image


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats(file_format):
    decoded = decode_image(encoded(two_colours(), file_format))
    assert decoded.mode == "RGB"
    assert torch.equal(pil_to_tensor(decoded), pil_to_tensor(two_colours()))


def test_jpeg_and_webp():
    image = Image.new("RGB", (16, 16), (200, 60, 30))
    for file_format in ["JPEG", *["WEBP"] * features.check("webp")]:
        assert decode_image(encoded(image, file_format, quality=95)).getpixel((8, 8)) == (
            pytest.approx((200, 60, 30), abs=4)
        )


def test_every_alphabet_and_padding_of_base64():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 20, 20), generator=generator, dtype=torch.uint8)
    image = Image.frombytes("RGB", (20, 20), noise.numpy().tobytes())
    url_safe = encoded(image)
    plain = url_safe.replace("-", "+").replace("_", "/")
    assert url_safe != plain
    for field in (url_safe, plain, plain.rstrip("="), f" {plain}\t"):
        assert torch.equal(pil_to_tensor(decode_image(field)), pil_to_tensor(image))


def test_transparency_becomes_white():
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    rgba.paste((0, 0, 255, 0), (0, 0, 2, 4))
    rgba.putpixel((3, 3), (255, 0, 0, 128))
    decoded = decode_image(encoded(rgba))
    assert decoded.mode == "RGB"
    assert decoded.getpixel((0, 0)) == WHITE
    assert decoded.getpixel((2, 0)) == RED
    assert decoded.getpixel((3, 3)) == pytest.approx((255, 127, 127), abs=1)

    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    decoded = decode_image(encoded(palette, transparency=0))
    assert [decoded.getpixel((0, 0)), decoded.getpixel((1, 0))] == [WHITE, RED]

    grey = Image.new("LA", (4, 4), (10, 0))
    grey.putpixel((1, 0), (10, 255))
    decoded = decode_image(encoded(grey))
    assert [decoded.getpixel((0, 0)), decoded.getpixel((1, 0))] == [WHITE, (10, 10, 10)]

    keyed = Image.new("RGB", (4, 4), "red")
    keyed.putpixel((0, 0), (0, 255, 0))
    decoded = decode_image(encoded(keyed, transparency=(0, 255, 0)))
    assert [decoded.getpixel((0, 0)), decoded.getpixel((1, 0))] == [WHITE, RED]


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for file_format in ["GIF", "PNG", *["WEBP"] * features.check("webp")]:
        options = {"lossless": True} if file_format == "WEBP" else {}
        field = encoded(
            frames[0], file_format, save_all=True, append_images=frames[1:], duration=50, **options
        )
        with Image.open(io.BytesIO(base64.urlsafe_b64decode(field))) as animation:
            assert animation.n_frames == 3
        assert decode_image(field).getpixel((4, 4)) == RED


def test_cmyk():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for file_format in ("JPEG", "TIFF"):
        decoded = decode_image(encoded(cmyk, file_format))
        assert decoded.getpixel((8, 8)) == pytest.approx(RED, abs=6)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(file_format):
    values = [0, 257, 128 * 257, 65535]
    grey = Image.frombytes("I;16", (4, 1), struct.pack("<4H", *values))
    decoded = decode_image(encoded(grey, file_format))
    assert [decoded.getpixel((x, 0)) for x in range(4)] == [(v // 257,) * 3 for v in values]


def test_grey_and_two_level_images():
    assert decode_image(encoded(Image.new("L", (2, 2), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encoded(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_pixels_raise(mode):
    with pytest.raises(ImageError, match=r"32-bit pixels.*8 bits"):
        decode_image(encoded(Image.new(mode, (4, 4), 1), "TIFF"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_orientation_of_exif(file_format):
    turns = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_270,
        8: Image.Transpose.ROTATE_90,
    }
    big = two_colours().resize((64, 32), Image.Resampling.NEAREST)
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        decoded = decode_image(encoded(big, file_format, exif=exif))
        expected = big if turn is None else big.transpose(turn)
        assert decoded.size == expected.size
        difference = pil_to_tensor(decoded).int() - pil_to_tensor(expected).int()
        assert difference.abs().float().mean() < 4


def test_unreadable_exif_is_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0"):
            assert decode_image(encoded(two_colours(), "JPEG", exif=exif)).size == (8, 4)


def test_a_field_may_be_a_path_relative_to_a_folder(tmp_path):
    (tmp_path / "images").mkdir()
    two_colours().save(tmp_path / "images" / "my cat.png")
    for field in ("images/my cat.png", str(tmp_path / "images/my cat.png")):
        decoded = decode_image(field, tmp_path)
        assert torch.equal(pil_to_tensor(decoded), pil_to_tensor(two_colours()))
    loaded = ImageLoader(8)("images/my cat.png", tmp_path)
    assert torch.equal(loaded, ImageLoader(8)(encoded(two_colours())))
    (tmp_path / "broken.png").write_text("x")
    for field, message in (
        ("broken.png", "not an image"),
        ("none.png", "'none.png' cannot be read from .*No such file"),
        ("images/.", "Is a directory"),
        ("a\0.png", "null"),
        ("x" * 3000 + ".png", "too long"),
        ("x" * 5000 + ".png", "not base64"),  # longer than any path
    ):
        with pytest.raises(ImageError, match=message) as caught:
            decode_image(field, tmp_path)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("a dog runs", "not base64"),
        ("café", "not base64"),
        ("abcde", "not base64"),
        ("x" * 4000, "not an image"),
        (base64.b64encode(b"<svg xmlns='...'/>").decode(), "not an image"),
        (base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode(), "not an image"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\nrubbish").decode(), "not an image"),
    ],
)
def test_fields_that_are_not_images_raise(field, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(field)
    assert caught.value.remedy
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("file_format", ["EPS", "PDF", "TGA"])
def test_unsupported_formats_raise(file_format):
    with pytest.raises(ImageError, match=r"not an image.*JPEG"):
        decode_image(encoded(two_colours(), file_format))


def _bytes_of(field: str) -> bytes:
    return base64.urlsafe_b64decode(field)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_truncated_files_raise(file_format):
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    whole = _bytes_of(
        encoded(Image.frombytes("RGB", (64, 64), noise.numpy().tobytes()), file_format)
    )
    for part in (len(whole) // 2, 30):
        with pytest.raises(ImageError):
            decode_image(base64.b64encode(whole[:part]).decode())


def test_damaged_data_raise():
    whole = bytearray(_bytes_of(encoded(Image.effect_noise((64, 64), 50).convert("RGB"))))
    at = whole.index(b"IDAT") + 40
    whole[at : at + 20] = bytes(20)
    with pytest.raises(ImageError, match="broken"):
        decode_image(base64.b64encode(bytes(whole)).decode())


def test_a_png_with_a_changed_pixel_is_broken(tmp_path):
    """Pillow decodes it: it reads no checksum of the pixels."""
    grey = Image.frombytes("L", (16, 8), bytes(range(128)))
    changed = bytearray(_bytes_of(encoded(grey, compress_level=0)))
    changed[changed.index(b"IDAT") + 40] ^= 5
    with pytest.raises(ImageError, match=r"the image is broken .*[Cc]hecksum"):
        decode_image(base64.b64encode(changed).decode())
    (tmp_path / "a.png").write_bytes(changed)
    with pytest.raises(BrokenImageError, match=r"a\.png is not a readable image .*[Cc]hecksum"):
        encode_image(tmp_path / "a.png")


def _png_header_only(width: int, height: int) -> str:
    """A PNG with a size in its header and almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def test_huge_images_are_rejected_by_their_header():
    with pytest.raises(ImageError, match="8000x8000 pixels, more than 50,000,000"):
        decode_image(_png_header_only(8000, 8000))
    with pytest.raises(ImageError, match=r"60000x60000 pixels.*raise --max-image-pixels"):
        decode_image(_png_header_only(60000, 60000))
    field = plain_field(size=(10, 10))
    assert decode_image(field, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10x10 pixels, more than 99"):
        decode_image(field, max_pixels=99)


@pytest.mark.parametrize(
    ("mean_std", "expected"),
    [
        ("half", (1.0, -1.0, 0.2 / 0.5 - 1)),
        ("imagenet", ((1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225)),
    ],
)
def test_transform_resizes_and_normalises(mean_std, expected):
    image = Image.new("RGB", (30, 10), (255, 0, 51))
    pixels = image_transform(16, mean_std)(image)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    for channel, value in enumerate(expected):
        assert torch.allclose(pixels[channel], torch.full((16, 16), value), atol=1e-6)


def test_resize_is_pillows_bicubic():
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    resized = pil_to_tensor(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert torch.allclose(image_transform(16)(image), resized / 127.5 - 1, atol=1e-6)


def test_loader():
    loader = pickle.loads(pickle.dumps(ImageLoader(12)))
    assert loader("") is None
    assert loader("  ") is None
    pixels = loader(plain_field("red"))
    assert pixels.shape == (3, 12, 12)
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_images_are_recognised_by_their_first_letters():
    noise = Image.effect_noise((32, 32), 50)
    for file_format in ("JPEG", "PNG", "GIF", "TIFF", *["WEBP"] * features.check("webp")):
        assert looks_like_image(encoded(noise, file_format))
    for text in ("", "a dog", "/9j/", "R0lGOD " + "is not a word " * 9):
        assert not looks_like_image(text)

"""Small vocabularies, images and TSV files for the tests of the data."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ofa_exit.data.text import TextEncoder, WordCodec

WORDS = (
    "what does the image describe ? a dog cat runs Runs on grass can and text1 text2 imply "
    '" two dogs run yes maybe no'
)


class WordList:
    """A vocabulary of given words, laid out as fairseq lays out a Dictionary."""

    def __init__(self, words: Iterable[str] = WORDS.split()):
        self.symbols = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(words)]
        self.numbers = {symbol: number for number, symbol in enumerate(self.symbols)}

    def bos(self) -> int:
        return 0

    def pad(self) -> int:
        return 1

    def eos(self) -> int:
        return 2

    def unk(self) -> int:
        return 3

    def index(self, sym: str) -> int:
        return self.numbers.get(sym, 3)

    def __len__(self) -> int:
        return len(self.symbols)

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(self.symbols[token] for token in tokens)


def word_encoder(words: Iterable[str] = WORDS.split()) -> TextEncoder:
    return TextEncoder(WordCodec(), WordList(words))


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> str:
    """Return the URL-safe base64 field of an image saved in ``file_format``."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return base64.urlsafe_b64encode(stream.getvalue()).decode()


def plain_field(colour: str = "red", size: tuple[int, int] = (8, 6)) -> str:
    return encoded(Image.new("RGB", size, colour))


def write_tsv(path: Path, rows: Iterable[Sequence[str]], end: str = "\n") -> Path:
    path.write_bytes("".join("\t".join(row) + end for row in rows).encode())
    return path


def caption_row(number: int, caption: str = "a dog runs", image: str | None = None) -> list[str]:
    """uniq-id, image-id, caption, predicted objects, image."""
    field = plain_field() if image is None else image
    return [str(number), f"img{number}", caption, "dog&&grass", field]


def entailment_row(
    number: int,
    hypothesis: str = "A dog runs",
    label: str = "entailment",
    premise: str = "Two dogs run",
    image: str | None = None,
) -> list[str]:
    """uniq-id, image-id, image, hypothesis, premise, label."""
    field = plain_field() if image is None else image
    return [f"{number}#1", f"img{number}", field, hypothesis, premise, label]

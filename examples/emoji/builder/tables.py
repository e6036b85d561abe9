"""The rows of the TSV files, in OFA's columns, and the dictionary of their words."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ofa_exit.data.files import atomic_write, write_bytes

from .categories import CATEGORY
from .entailment import Row
from .errors import EmojiDataError
from .pictures import Picture

CAPTION_COLUMNS = ("uniq-id", "image-id", "caption", "predicted objects", "image")
ENTAILMENT_COLUMNS = ("uniq-id", "image-id", "image", "hypothesis", "caption", "label")
SEPARATOR = "&&"

# The tasks' prompts and answers; their words must be in the dictionary too.
CAPTION_PROMPT = "what does the image describe ?"
ENTAILMENT_PROMPTS = (
    'does the image describe " {hypothesis} " ?',
    'can image and text1 " {premise} " imply text2 " {hypothesis} " ?',
)
ANSWERS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}

Table = list[tuple[str, ...]]
Encode = Callable[[Picture], bytes]


def image_field(content: bytes) -> str:
    """Encode a picture file as URL-safe base64."""
    return base64.urlsafe_b64encode(content).decode("ascii")


def caption_table(pictures: Sequence[Picture], all_references: bool, encode: Encode) -> Table:
    """Return one row per picture: its official name, or all references joined by `&&`."""
    return [
        (
            picture.image_id.replace("/", "."),
            picture.image_id,
            SEPARATOR.join(picture.references) if all_references else picture.references[0],
            CATEGORY[picture.concept.subgroup],
            image_field(encode(picture)),
        )
        for picture in pictures
    ]


def reference_table(pictures: Sequence[Picture]) -> Table:
    """Return image id and all references of each picture, to score captions of training data."""
    return [(picture.image_id, SEPARATOR.join(picture.references)) for picture in pictures]


def entailment_table(rows: Sequence[Row], encode: Encode) -> Table:
    """Return one row per question; the premise only names the picture's category."""
    asked: Counter[str] = Counter()
    table: Table = []
    for row in rows:
        picture = row.picture
        asked[picture.image_id] += 1
        table.append(
            (
                f"{picture.image_id.replace('/', '.')}.{asked[picture.image_id]}",
                picture.image_id,
                image_field(encode(picture)),
                row.hypothesis,
                CATEGORY[picture.concept.subgroup],
                row.label,
            )
        )
    return table


def write_table(path: Path, table: Table) -> None:
    """Write a TSV file atomically; reject a field that would break the format."""
    with atomic_write(path) as stream:
        for number, row in enumerate(table, 1):
            for field in row:
                if not field.strip() or "\t" in field or "\n" in field:
                    raise EmojiDataError(f"{path.name}:{number}: empty or broken field {field!r}")
            stream.write(("\t".join(row) + "\n").encode("utf-8"))


def count_words(captions: Iterable[Table], entailments: Iterable[Table]) -> Counter[str]:
    """Count the words of all captions and questions, including prompts and answers."""
    counts: Counter[str] = Counter()
    for table in captions:
        for row in table:
            counts.update(row[2].replace(SEPARATOR, f" {SEPARATOR} ").split())
            counts.update(CAPTION_PROMPT.split())
    for table in entailments:
        for row in table:
            for prompt in ENTAILMENT_PROMPTS:
                counts.update(prompt.format(hypothesis=row[3], premise=row[4]).split())
            counts[ANSWERS[row[5]]] += 1
    return counts


def write_dictionary(path: Path, counts: Mapping[str, int]) -> None:
    """Write fairseq's dict.txt: `word count`, in alphabetical order.

    The order depends only on the vocabulary, not on how often a word was sampled.
    """
    lines = (f"{word} {count}\n" for word, count in sorted(counts.items()))
    write_bytes(path, "".join(lines).encode("utf-8"))


def sample(pictures: Sequence[Picture], limit: int, seed: str) -> list[Picture]:
    """Return at most `limit` pictures, shuffled."""
    return random.Random(seed).sample(list(pictures), min(limit, len(pictures)))

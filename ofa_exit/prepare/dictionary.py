"""dict.txt of the words of training texts, for models without a BPE."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ofa_exit.data.files import sha256_of, write_bytes

from . import manifest
from .job import log
from .records import Item, Record


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --dictionary: the words that come first in dict.txt, or None for no dictionary."""
    parser.add_argument(
        "--dictionary", type=_first_words, default="words", metavar="KIND",
        help="dict.txt next to the TSV files: words (default), those of the training texts; a "
        "dict.txt, whose words come first and in order, so that a checkpoint trained with it keeps "
        "them; or none, for training with a BPE (BPE_DIR)",
    )  # fmt: skip


def column(items: Iterable[Item], number: int) -> Iterator[str]:
    """Yield a text column of the rows."""
    for item in items:
        if isinstance(item, Record):
            yield item.columns[number] or ""


def caption_texts(captions: Iterable[str]) -> Iterator[str]:
    """Yield the prompt and the captions as a model reads them."""
    # Slow imports: data.text needs torch.
    from ofa_exit.data.caption import PROMPT
    from ofa_exit.data.text import strip_punctuation

    yield PROMPT
    yield from map(strip_punctuation, captions)


def question_texts(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the questions and the answers of (question, answer) pairs as a model reads them."""
    from ofa_exit.data.vqa import question_text

    for question, answer in pairs:
        yield question_text(question)
        yield answer


def write(options: argparse.Namespace, source: Path, texts: Iterable[str]) -> None:
    """Write OUT/dict.txt as --dictionary says: the most frequent word first, ties by name.

    It has the words of every task's prompt, too, as that of ``ofa-exit dict``.

    A folder with a BPE, or with a dict.txt that was not made here, keeps its dictionary.

    Args:
        options: ``dictionary`` and ``out``.
        source: the annotation file of ``texts``.
        texts: training texts as models read them, with the prompt of the task.
    """
    first: list[str] | None = options.dictionary
    if first is None:
        return
    path: Path = options.out / "dict.txt"
    bpe = [*options.out.glob("encoder.json"), *options.out.glob("*.model")]
    if bpe or (path.exists() and not manifest.manifest_path(path).exists()):
        log(f"{path}: kept; {bpe[0].name if bpe else 'the dictionary'} is not made by this command")
        return
    from ofa_exit.data.dictionary import dictionary_lines, required_symbols
    from ofa_exit.data.text import WordCodec

    codec, counts = WordCodec(), Counter[str]()
    for text in texts:
        counts.update(codec.encode(text).split())
    lines = dictionary_lines(counts, required_symbols(), first)
    inputs = manifest.fingerprint([source], {"first": first})
    manifest.check_release(path, inputs)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    manifest.write_manifest(path, len(lines), path.stat(), sha256_of(path), inputs=inputs)
    added = f", {len(lines) - len(first):,} of them after those of --dictionary" if first else ""
    log(f"{path}: {len(lines):,} words{added}")


def _first_words(kind: str) -> list[str] | None:
    """Return the lines of the dict.txt that --dictionary names; None for none."""
    if kind in ("words", "none"):
        return [] if kind == "words" else None
    from ofa_exit.data.dictionary import read_dictionary

    try:
        return read_dictionary(kind)
    except (OSError, ValueError) as error:
        message = f"{error}. Other values are words and none"
        raise argparse.ArgumentTypeError(message) from None

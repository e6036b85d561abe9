"""SNLI-VE: JSON lines with an image of Flickr30k, a hypothesis and its label.

Rows are OFA's: uniq-id (pairID), image-id, image, hypothesis, caption (sentence1, the text
premise), label (entailment, neutral, contradiction). Texts are as published; the data loader
normalises them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .images import Files
from .job import Job
from .json_stream import lines
from .records import Item, MalformedError, Record, clean, items
from .splits import available

HELP = """SNLI-VE visual entailment: train.tsv, valid.tsv (the split dev) and test.tsv.

  ROOT/snli_ve_train.jsonl, snli_ve_dev.jsonl, snli_ve_test.jsonl   https://github.com/necla-ml/SNLI-VE
  ROOT/flickr30k-images/1000092795.jpg …   on request, http://shannon.cs.illinois.edu/DenotationGraph/"""

SPLITS = {
    "train": {"pairs": ("snli_ve_train.jsonl",)},
    "valid": {"pairs": ("snli_ve_dev.jsonl",)},
    "test": {"pairs": ("snli_ve_test.jsonl",)},
}
# Xie et al. 2019, table of splits: pairs and images.
PUBLISHED = {
    "train": {"rows": 529_527, "images": 29_783},
    "valid": {"rows": 17_858, "images": 1_000},
    "test": {"rows": 17_901, "images": 1_000},
}
_LABELS = ("entailment", "neutral", "contradiction")


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    for split, found in available(SPLITS, options.splits, files):
        source = found["pairs"]
        yield Job(
            options.out / f"{split}.tsv",
            (source,),
            functools.partial(read, source),
            expected=PUBLISHED[split],
        )


def read(source: Path) -> Iterator[Item]:
    """Yield the rows in the file's order."""

    def make(id: str, entry: Any) -> Iterator[Record]:
        key = (
            "Flikr30kID" if "Flikr30kID" in entry else "Flickr30K_ID"
        )  # name in the first releases
        image = str(entry[key]).removesuffix(".jpg")
        if entry["gold_label"] not in _LABELS:
            raise MalformedError(f"gold_label {entry['gold_label']!r}, none of {_LABELS}")
        hypothesis = clean(entry["sentence2"], "sentence2")
        premise = clean(entry["sentence1"], "sentence1")
        columns = (id, image, None, hypothesis, premise, entry["gold_label"])
        yield Record(id, (f"{image}.jpg",), columns)

    def id_of(place: str, entry: Any) -> str:
        return clean(entry["pairID"], "pairID")

    return items(source, lines(source), id_of, make)

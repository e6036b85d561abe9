"""GQA: one JSON object per split, question id → question about an image of Visual Genome.

Rows are those of ``answers``. A question has one answer, with confidence 1. question-id and
image-id are the release's.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ofa_exit.data.answers import join_answers

from .images import Files
from .job import Job
from .json_stream import elements
from .records import Item, Record, clean, items
from .splits import available

HELP = """GQA, balanced questions: train.tsv, valid.tsv, testdev.tsv (on which results are reported)
and test.tsv (no answers).

  ROOT/{train,val,testdev,test}_balanced_questions.json   https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip
  ROOT/images/2370799.jpg …                               https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"""

SPLITS = {
    "train": {"questions": ("train_balanced_questions.json",)},
    "valid": {"questions": ("val_balanced_questions.json",)},
    "testdev": {"questions": ("testdev_balanced_questions.json",)},
    "test": {"questions": ("test_balanced_questions.json",)},
}
# Hudson & Manning 2019, version 1.2.
PUBLISHED = {
    "train": {"rows": 943_000},
    "valid": {"rows": 132_062},
    "testdev": {"rows": 12_578, "images": 398},
    "test": {"rows": 95_336},
}


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    for split, found in available(SPLITS, options.splits, files):
        source = found["questions"]
        yield Job(
            options.out / f"{split}.tsv",
            (source,),
            functools.partial(read, source, answered=split != "test"),
            options={"answered": split != "test"},
            expected=PUBLISHED[split],
        )


def read(source: Path, answered: bool = True) -> Iterator[Item]:
    """Yield the rows in the file's order. Without ``answered``, answers are left empty."""

    def make(id: str, entry: Any) -> Iterator[Record]:
        image = clean(str(entry["imageId"]), "imageId")
        question = clean(entry["question"], "the question").lower()
        answer = ""
        if answered:
            answer = join_answers([(1.0, clean(entry["answer"], "the answer").lower())])
        yield Record(id, (f"{image}.jpg",), (id, image, question, answer, "", None))

    return items(source, elements(source), lambda id, entry: id, make)

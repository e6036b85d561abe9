"""VizWiz VQA: one JSON list per split, one question about each photograph by a blind person.

Rows are those of ``answers``. question-id is the image's file name, as in submitted results;
image-id is the same without its suffix.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .answers import annotators, candidate_list, most_common, question_rows
from .images import Files
from .job import Job
from .json_stream import elements
from .records import Item, LeftOut, MalformedError, Record, clean, items
from .splits import Wanted, available
from .vqa import add_options as add_answer_options

HELP = """VizWiz VQA: train.tsv (one row per question and answer, with its confidence), valid.tsv
(one row per question with all ten answers) and test.tsv (no answers). With --answers N also
answers.txt.

  ROOT/Annotations/{train,val,test}.json            https://vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip
  ROOT/{train,val,test}/VizWiz_train_00000000.jpg …   https://vizwiz.cs.colorado.edu/VizWiz_final/images/{train,val,test}.zip"""

SPLITS: dict[str, Wanted] = {
    "train": {"questions": ("Annotations/train.json", "train.json")},
    "valid": {"questions": ("Annotations/val.json", "val.json")},
    "test": {"questions": ("Annotations/test.json", "test.json")},
}
# Gurari et al. 2018, in the version of 2020: one question per image.
PUBLISHED = {"train": 20_523, "valid": 4_319, "test": 8_000}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_answer_options(parser, answers=0, least=1)


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    found = dict(available(SPLITS, options.splits, files))
    both = {name: SPLITS[name]["questions"] for name in ("train", "valid")}
    candidates, listed = candidate_list(options, found, both, files, _commonest)
    for split, part in found.items():
        source = part["questions"]
        yield Job(
            options.out / f"{split}.tsv",
            (source, *(listed if split == "train" else ())),
            functools.partial(read, source, split, candidates),
            options={"split": split},
            entry="questions",
            expected={"questions": PUBLISHED[split], "images": PUBLISHED[split]},
        )


def _commonest(source: Path) -> Iterator[str]:
    for _, entry in elements(source):
        try:
            yield most_common(annotators(entry["answers"]))
        except (MalformedError, KeyError, TypeError):
            continue  # reported when the rows are made


def read(source: Path, split: str, candidates: frozenset[str] | None = None) -> Iterator[Item]:
    """Yield the rows in the file's order."""

    def make(id: str, entry: Any) -> Iterator[Record | LeftOut]:
        answers = None if split == "test" else annotators(entry["answers"])
        yield from question_rows(
            id, Path(id).stem, (id,), entry["question"], answers,
            train=split == "train", candidates=candidates,
        )  # fmt: skip

    def id_of(place: str, entry: Any) -> str:
        return clean(entry["image"], "image")

    return items(source, elements(source), id_of, make)

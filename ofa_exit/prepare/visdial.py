"""VisDial 1.0: dialogues of ten rounds about an image, each round a question with 100 answers.

One row per round has the ``COLUMNS``:

- question-id ``IMAGE_ROUND`` (rounds count from 1, as in submitted results), image-id;
- history: the caption and the earlier rounds, ``caption. question? answer. question? answer.``;
- question, with its question mark;
- answers: the candidates joined by ``&&``, in the release's order. Training rows have the true
  answer only;
- gt_index: number of the true answer, from 0 (0 in training, empty where it is not published);
- relevance: the candidates' relevances joined by ``&&`` (dense annotations, one round per
  validation image), or empty;
- image.

The test split has one row per dialogue: its last round, the only one to answer.
A round with an empty or malformed text is a problem. So are the rounds after it, because their
history is incomplete. A relevance that is malformed, or 0 for all candidates (NDCG is undefined),
is a problem, but its round keeps its row.
Memory: the release's lists of questions and answers (about 100 MB), and the dense annotations.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ofa_exit.data.formats import SEPARATOR

from .images import Files
from .job import Job, log
from .json_stream import elements
from .records import (
    ENTRY_ERRORS,
    Item,
    MalformedError,
    Problem,
    Record,
    clean,
    coco_names,
    items,
    reason,
    require_int,
)
from .splits import available

HELP = """VisDial 1.0: train.tsv (one row per round, with the true answer), valid.tsv (100
candidates, the true one's index, annotated relevances) and test.tsv (the last round of each
dialogue).

  ROOT/visdial_1.0_{train,val,test}.json, ROOT/visdial_1.0_val_dense_annotations.json
  ROOT/VisualDialog_val2018/VisualDialog_val2018_000000000284.jpg …
  ROOT/VisualDialog_test2018/VisualDialog_test2018_000000000001.jpg …
       all from https://visualdialog.org/data
  ROOT/{train2014,val2014}/COCO_train2014_000000000009.jpg …   images of train.tsv
       http://images.cocodataset.org/zips/{train2014,val2014}.zip"""

COLUMNS = (
    *("question_id", "image_id", "history", "question", "answers", "gt_index"),
    *("relevance", "image"),
)
CANDIDATES = 100
SPLITS = {
    "train": {"dialogs": ("visdial_1.0_train.json",)},
    "valid": {"dialogs": ("visdial_1.0_val.json",)},
    "test": {"dialogs": ("visdial_1.0_test.json",)},
}
_DENSE = "visdial_1.0_val_dense_annotations.json"
# Das et al. 2017, version 1.0: one dialogue of ten rounds per image.
PUBLISHED = {
    "train": {"rows": 1_232_870, "images": 123_287},
    "valid": {"rows": 20_640, "images": 2_064},
    "test": {"rows": 8_000, "images": 8_000},
}
Dense = Mapping[tuple[int, int], str]


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    for split, found in available(SPLITS, options.splits, files):
        source = found["dialogs"]
        dense = files.annotation(_DENSE) if split == "valid" else None
        if split == "valid" and dense is None:
            log(f"warning: {split}: {_DENSE} is missing, so there is no relevance and no NDCG")
        yield Job(
            options.out / f"{split}.tsv",
            (source, *([dense] if dense else [])),
            functools.partial(read, source, split, dense),
            options={"split": split},
            expected=PUBLISHED[split],
        )


def read(source: Path, split: str, dense: Path | None = None) -> Iterator[Item]:
    """Yield the rows in the file's order, then the problems of relevances."""
    questions = [_text(text) for _, text in elements(source, "data", "questions")]
    answers = [_text(text) for _, text in elements(source, "data", "answers")]
    relevance, malformed = ({}, []) if dense is None else read_dense(dense)
    used = set()

    def spoken(turn: Any) -> list[str]:
        """Return what a round adds to the history."""
        if "answer" not in turn:
            return []
        question = _ending(_text_at(questions, turn["question"], "question"), "?")
        return [question, _ending(_text_at(answers, turn["answer"], "answer"), ".")]

    def make(id: str, entry: Any) -> Iterator[Record | Problem]:
        image = int(id)
        names = coco_names(image)
        if split != "train":
            subset = {"valid": "val2018", "test": "test2018"}[split]
            names = (f"VisualDialog_{subset}_{image:012d}.jpg",)
        history = [_ending(clean(entry["caption"], "caption"), ".")]
        if not entry["dialog"]:
            raise MalformedError("the dialogue has no rounds")
        history_error = ""
        for number, turn in enumerate(entry["dialog"], start=1):
            key = f"{id}_{number}"
            if split != "test" or number == len(entry["dialog"]):
                used.add((image, number))
                try:
                    if history_error:
                        raise MalformedError(f"its history is incomplete: {history_error}")
                    question = _ending(_text_at(questions, turn["question"], "question"), "?")
                    dense_field = relevance.get((image, number), "")
                    columns = _answer_columns(turn, answers, split, dense_field)
                except ENTRY_ERRORS as error:
                    yield Problem(source.name, key, reason(error))
                else:
                    before = " ".join(history)
                    yield Record(key, names, (key, id, before, question, *columns, None))
            try:
                history += spoken(turn)
            except ENTRY_ERRORS as error:
                history_error = history_error or f"round {number}: {reason(error)}"

    def id_of(place: str, entry: Any) -> str:
        return str(require_int(entry["image_id"], "image_id"))

    yield from items(source, elements(source, "data", "dialogs"), id_of, make)
    yield from malformed
    for image, number in sorted(relevance.keys() - used):
        yield Problem(dense.name if dense else "", f"{image}_{number}", "round not found")


def _answer_columns(
    turn: Any, answers: list[str], split: str, relevance: str
) -> tuple[str, str, str]:
    """Return answers, gt_index and relevance of a round."""
    if split == "train":
        return _text_at(answers, turn["answer"], "answer"), "0", ""
    options = [_text_at(answers, option, "answer_options") for option in turn["answer_options"]]
    if len(options) != CANDIDATES:
        raise MalformedError(f"a round has {len(options)} candidates, not {CANDIDATES}")
    truth = ""
    if split != "test":
        index = require_int(turn["gt_index"], "gt_index")
        if not 0 <= index < CANDIDATES:
            raise MalformedError(f"gt_index {index} is none of the {CANDIDATES} candidates")
        truth = str(index)
    return SEPARATOR.join(options), truth, relevance


def read_dense(source: Path) -> tuple[Dense, list[Problem]]:
    """Return the relevance fields by (image, round), and the problems of the others."""
    found: dict[tuple[int, int], str] = {}
    problems = []
    for place, entry in elements(source):
        where = f"entry {place}"
        try:
            key = (
                require_int(entry["image_id"], "image_id"),
                require_int(entry["round_id"], "round_id"),
            )
            where = f"{key[0]}_{key[1]}"
            if key in found:
                raise MalformedError("the round is annotated twice")
            values = [float(value) for value in entry["gt_relevance"]]
            if len(values) != CANDIDATES or not all(0 <= value <= 1 for value in values):
                raise MalformedError(f"gt_relevance is not {CANDIDATES} numbers from 0 to 1")
            if not any(values):
                raise MalformedError("gt_relevance is 0 for all candidates: NDCG is undefined")
        except ENTRY_ERRORS as error:
            problems.append(Problem(source.name, where, reason(error)))
        else:
            found[key] = SEPARATOR.join(f"{value:g}" for value in values)
    return found, problems


def _text(value: Any) -> str:
    """Return a text, or "" for others, which are problems of the rounds that use them."""
    try:
        return clean(value)
    except MalformedError:
        return ""


def _text_at(texts: list[str], index: Any, name: str) -> str:
    """Return the text that a round refers to. Raises MalformedError."""
    if not 0 <= require_int(index, name) < len(texts):
        raise MalformedError(f"{name} {index} is none of the {len(texts):,} texts")
    if not texts[index]:
        raise MalformedError(f"{name} {index} is empty or not text")
    return texts[index]


def _ending(text: str, mark: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + mark

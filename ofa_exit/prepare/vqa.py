"""VQA v2 and OK-VQA, which has its format: question and annotation JSON, joined by question id.

Rows are those of ``answers``. question-id is the release's, image-id is COCO's.
Memory: the annotations of a split (about 150 MB for VQA v2); the questions are streamed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answers import annotators, candidate_list, most_common, question_rows
from .images import Files
from .job import Job
from .json_stream import elements
from .records import (
    ENTRY_ERRORS,
    Item,
    LeftOut,
    MalformedError,
    Problem,
    Record,
    clean,
    coco_names,
    items,
    reason,
    require_int,
)
from .splits import Wanted, available

HELP = """VQA v2: train.tsv (one row per question and answer, with its confidence), valid.tsv (one
row per question with all ten answers), test-dev.tsv and test.tsv (no answers), answers.txt
(candidates from train and validation). The split trainval (train and validation as training data)
is made only if --splits names it.

  ROOT/v2_OpenEnded_mscoco_{train2014,val2014,test-dev2015,test2015}_questions.json
  ROOT/v2_mscoco_{train2014,val2014}_annotations.json
       https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Questions_{Train,Val,Test}_mscoco.zip
       https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Annotations_{Train,Val}_mscoco.zip
  ROOT/{train2014,val2014,test2015}/COCO_train2014_000000000009.jpg …
       http://images.cocodataset.org/zips/{train2014,val2014,test2015}.zip"""

_QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_ANNOTATIONS = "v2_mscoco_{}_annotations.json"


def parts_of(questions: str, annotations: str, *subsets: str) -> Wanted:
    """Return the question and annotation files of ``subsets``, by part."""
    parts: dict[str, tuple[str, ...]] = {}
    for subset in subsets:
        parts[f"questions {subset}"] = (questions.format(subset),)
        if annotations:
            parts[f"annotations {subset}"] = (annotations.format(subset),)
    return parts


SPLITS: dict[str, Wanted] = {
    "train": parts_of(_QUESTIONS, _ANNOTATIONS, "train2014"),
    "valid": parts_of(_QUESTIONS, _ANNOTATIONS, "val2014"),
    "test-dev": parts_of(_QUESTIONS, "", "test-dev2015"),
    "test": parts_of(_QUESTIONS, "", "test2015"),
    "trainval": parts_of(_QUESTIONS, _ANNOTATIONS, "train2014", "val2014"),
}
DEFAULT = ("train", "valid", "test-dev", "test")
# Goyal et al. 2017, and the download page.
PUBLISHED = {
    "train": {"questions": 443_757, "images": 82_783},
    "valid": {"questions": 214_354, "images": 40_504},
    "test-dev": {"questions": 107_394},
    "test": {"questions": 447_793, "images": 81_434},
    "trainval": {"questions": 658_111, "images": 123_287},
}


def add_options(parser: argparse.ArgumentParser, answers: int = 3129, least: int = 9) -> None:
    parser.add_argument(
        "--answers", type=_count, default=answers, metavar="N",
        help="write answers.txt, the N most frequent answers of train and validation, and keep "
        "only those in training data; 0: no list, all answers (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--min-occurrences", type=_count, default=least, metavar="K",
        help="questions that a candidate must answer (default %(default)s)",
    )  # fmt: skip


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    yield from question_jobs(options, files, SPLITS, DEFAULT, PUBLISHED)


def question_jobs(
    options: argparse.Namespace,
    files: Files,
    splits: Mapping[str, Wanted],
    default: tuple[str, ...],
    published: Mapping[str, dict[str, int]],
) -> Iterator[Job]:
    """Yield the jobs of a release in VQA's format; write the candidate list before the first."""
    chosen = options.splits or default
    found = dict(available({name: splits[name] for name in chosen}, options.splits, files))
    annotated = {k: v for k, v in splits["trainval"].items() if k.startswith("annotations")}
    candidates, listed = candidate_list(options, found, annotated, files, _commonest)
    for split, parts in found.items():
        train = split.startswith("train")
        pairs = tuple(
            (path, parts.get(part.replace("questions", "annotations")))
            for part, path in parts.items()
            if part.startswith("questions")
        )
        yield Job(
            options.out / f"{split}.tsv",
            tuple(parts.values()) + (listed if train else ()),
            functools.partial(read_all, pairs, train, candidates),
            options={"train": train},
            entry="questions",
            expected=published.get(split, {}),
        )


def _commonest(source: Path) -> Iterator[str]:
    for annotation in read_annotations(source).values():
        if isinstance(annotation, Annotation):
            yield annotation.commonest


@dataclass(frozen=True, slots=True)
class Annotation:
    """A question's answers; ``commonest`` is the release's choice if it names one."""

    image_id: int
    answers: tuple[str, ...]
    commonest: str


def read_annotations(source: Path) -> dict[int, Annotation | str]:
    """Return annotations by question id; for a malformed one, what is wrong with it."""
    found: dict[int, Annotation | str] = {}
    texts: dict[str, str] = {}  # each distinct answer is kept once in memory
    for place, entry in elements(source, "annotations"):
        try:
            id = require_int(entry["question_id"], "question_id")
        except (KeyError, TypeError, MalformedError):
            found[-1 - int(place)] = "the annotation has no question_id"
            continue
        if id in found:
            found[id] = "the question is annotated twice"
            continue
        try:
            given = tuple(texts.setdefault(text, text) for text in annotators(entry["answers"]))
            named = entry.get("multiple_choice_answer")
            named = clean(named, "multiple_choice_answer").lower() if named else most_common(given)
            image = require_int(entry["image_id"], "image_id")
            found[id] = Annotation(image, given, texts.setdefault(named, named))
        except ENTRY_ERRORS as error:
            found[id] = reason(error)
    return found


def read_all(
    pairs: tuple[tuple[Path, Path | None], ...], train: bool, candidates: frozenset[str] | None
) -> Iterator[Item]:
    """Yield the rows of all (questions, annotations), one pair after the other."""
    for asked, answered in pairs:
        yield from read(asked, answered, train, candidates)


def read(
    questions: Path, annotations: Path | None, train: bool, candidates: frozenset[str] | None = None
) -> Iterator[Item]:
    """Yield the rows in the order of the questions, then a problem per unasked annotation."""
    known = None if annotations is None else read_annotations(annotations)
    asked = set()

    def make(id: str, entry: Any) -> Iterator[Record | LeftOut]:
        image = require_int(entry["image_id"], "image_id")
        answers = None
        if known is not None:
            asked.add(int(id))
            annotation = known.get(int(id))
            if annotation is None:
                raise MalformedError(f"{annotations and annotations.name} has no such question")
            if isinstance(annotation, str):
                raise MalformedError(annotation)
            if annotation.image_id != image:
                raise MalformedError(f"its annotation is about image {annotation.image_id}")
            answers = annotation.answers
        yield from question_rows(
            id, str(image), coco_names(image), entry["question"], answers,
            train=train, candidates=candidates,
        )  # fmt: skip

    def id_of(place: str, entry: Any) -> str:
        return str(require_int(entry["question_id"], "question_id"))

    yield from items(questions, elements(questions, "questions"), id_of, make)
    if known is not None and annotations is not None:
        for id, annotation in known.items():
            if id not in asked:
                message = f"{questions.name} does not ask it"
                if isinstance(annotation, str):
                    message = annotation
                where = str(id) if id >= 0 else f"entry {-1 - id}"
                yield Problem(annotations.name, where, message)

"""VQA-RAD, questions and answers of clinicians about radiology images (Lau et al. 2018).

Rows are those of ``answers``, with one answer of confidence 1 in lower case. question-id is the
release's qid, image-id the image's name without its suffix.

The release has a test split: questions whose phrase_type starts with ``test``. It has no validation
split, so a tenth of the training questions becomes valid.tsv, by the SHA-256 of qid_linked_id: a
question and its paraphrases stay together, as in the test split. Training questions that stand in
the test split, or twice, are left out: the same image, question and answer but for case and spaces.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ofa_exit.data.answers import CONFIDENCE, join_answers

from . import dictionary
from .answers import write_candidates
from .images import Files
from .job import Job
from .json_stream import elements, of_form
from .records import ENTRY_ERRORS, Item, LeftOut, MalformedError, Record, clean, items
from .splits import available

HELP = """VQA-RAD, questions about radiology images: train.tsv, valid.tsv (a tenth of the training
questions), test.tsv (the official test split), test_closed.tsv and test_open.tsv (its questions by
answer_type), answers.txt (the training answers). The split trainval (all training questions) is
made only if --splits names it.

  ROOT/VQA_RAD Dataset Public.json                    from https://osf.io/89kps
  ROOT/VQA_RAD Image Folder/synpic100132.jpg …        images of any size"""

_FILES = {"questions": ("VQA_RAD Dataset Public.json",)}
DEFAULT = ("train", "valid", "test", "test_closed", "test_open")
SPLITS = dict.fromkeys((*DEFAULT, "trainval"), _FILES)
# 2,248 questions about 314 of the 315 images.
PUBLISHED = {
    True: {"questions": 451, "images": 203},
    False: {"questions": 1_797, "images": 313},
}
PHRASE_TYPES = ("freeform", "para", "test_freeform", "test_para")
ANSWER_TYPES = ("CLOSED", "OPEN")
_KEYS = ("qid", "image_name", "phrase_type", "answer_type", "question", "answer")
# Differs from the paper: one question of ten, where the release has no validation split.
VALID_ONE_OF = 10


class Question(NamedTuple):
    """A question as it becomes a row. ``is_closed``: it is answered from a limited set."""

    image_name: str
    question: str
    answer: str
    is_test: bool
    is_valid: bool
    is_closed: bool

    @property
    def triplet(self) -> tuple[str, str, str]:
        return self[:3]


def add_options(parser: argparse.ArgumentParser) -> None:
    dictionary.add_option(parser)


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    chosen = options.splits or DEFAULT
    found = dict(available({name: SPLITS[name] for name in chosen}, options.splits, files))
    texts_written = False
    for split, parts in found.items():
        source, is_test = parts["questions"], split.startswith("test")
        yield Job(
            options.out / f"{split}.tsv",
            (source,),
            functools.partial(read, source, split),
            options={"split": split},
            entry="questions",
            expected=PUBLISHED[is_test],
        )
        if not is_test and not texts_written:
            _write_texts(options, source)
            texts_written = True


def _write_texts(options: argparse.Namespace, source: Path) -> None:
    """Write answers.txt and dict.txt of all training questions."""
    asked = [question for question in known(source) if not question.is_test]
    counts = Counter(question.answer for question in asked)
    ranked = sorted(counts, key=lambda answer: (-counts[answer], answer))
    write_candidates(options.out / "answers.txt", ranked, [source], {})
    pairs = [(question.question, question.answer) for question in asked]
    dictionary.write(options, source, dictionary.question_texts(pairs))


def parse(entry: Any) -> Question:
    """Return a question. Raises one of ``ENTRY_ERRORS``."""
    phrase = clean(entry["phrase_type"], "phrase_type").lower()
    if phrase not in PHRASE_TYPES:
        raise MalformedError(f"phrase_type {phrase!r}, none of {PHRASE_TYPES}")
    kind = clean(entry["answer_type"], "answer_type").upper()
    if kind not in ANSWER_TYPES:
        raise MalformedError(f"answer_type {kind!r}, none of {ANSWER_TYPES}")
    answer = entry["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    answer = clean(answer, "the answer").lower()
    if CONFIDENCE in answer:
        raise MalformedError(f"the answer {answer!r} contains {CONFIDENCE}")
    linked = hashlib.sha256(str(entry["qid_linked_id"]).encode()).hexdigest()
    return Question(
        image_name=clean(entry["image_name"], "image_name"),
        question=clean(entry["question"], "the question").lower(),
        answer=answer,
        is_test=phrase.startswith("test"),
        is_valid=int(linked, 16) % VALID_ONE_OF == 0,
        is_closed=kind == "CLOSED",
    )


def known(source: Path) -> Iterator[Question]:
    """Yield the well-formed questions; `read` reports the others."""
    for _, entry in of_form(source, elements(source), _KEYS):
        try:
            yield parse(entry)
        except ENTRY_ERRORS:
            continue


def read(source: Path, split: str) -> Iterator[Item]:
    """Yield the rows of ``split`` in the file's order. Memory: the questions."""
    test = {question.triplet for question in known(source) if question.is_test}
    seen: set[tuple[str, str, str]] = set()

    def make(id: str, entry: Any) -> Iterator[Record | LeftOut]:
        question = parse(entry)
        if question.is_test != split.startswith("test"):
            return
        names = (question.image_name,)
        reason = _reason(question, split, test, seen)
        seen.add(question.triplet)
        if reason:
            yield LeftOut(id, names, reason)
            return
        image = Path(question.image_name).stem
        field = join_answers([(1.0, question.answer)])
        yield Record(id, names, (id, image, question.question, field, "", None))

    def id_of(place: str, entry: Any) -> str:
        id = clean(str(entry["qid"]), "qid")
        if not id.isdecimal():
            raise MalformedError(f"qid {id!r} is not a number")
        return str(int(id))

    return items(source, of_form(source, elements(source), _KEYS), id_of, make)


def _reason(
    question: Question,
    split: str,
    test: set[tuple[str, str, str]],
    seen: set[tuple[str, str, str]],
) -> str:
    """Return why a question of the official split has no row in ``split``, "" if it has one."""
    if question.is_test:
        other = {"test_closed": False, "test_open": True}.get(split)
        return ("closed questions" if question.is_closed else "open questions") * (
            other == question.is_closed
        )
    if question.triplet in test:
        return "questions of the test split"
    if question.triplet in seen:
        return "repeated questions"
    if split == "train" and question.is_valid:
        return "questions of valid.tsv"
    if split == "valid" and not question.is_valid:
        return "questions of train.tsv"
    return ""

"""Answers of OFA's VQA files: the column ``1.0|!+yes&&0.6|!+no``, and lists of candidates."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ofa_exit.data.formats import SEPARATOR
from ofa_exit.regular_files import regular_file

CONFIDENCE = "|!+"
ANNOTATORS = 10
# What a row holds: the answers of ten annotators, one answer, or distinct answers with a score.
TEN, ONE, WEIGHTED = "ten annotators", "one answer", "weighted answers"


def join_answers(answers: Iterable[tuple[float, str]]) -> str:
    """Return the field for (confidence, answer) pairs."""
    return SEPARATOR.join(f"{number:.1f}{CONFIDENCE}{answer}" for number, answer in answers)


def parse_answers(field: str) -> list[tuple[float, str]]:
    """Return the (confidence, answer) pairs of a field. Raises ValueError for a malformed one."""
    pairs = []
    for part in field.split(SEPARATOR) if field else []:
        number, mark, answer = part.partition(CONFIDENCE)
        if not mark:
            raise ValueError(f"{part!r} is not CONFIDENCE{CONFIDENCE}ANSWER")
        pairs.append((float(number), answer))
    return pairs


def answer_form(answers: Sequence[tuple[float, str]]) -> str | None:
    """Return TEN, ONE or WEIGHTED; None without answers. A single answer of 1.0 is ONE."""
    if not answers:
        return None
    if all(conf == 1 for conf, _ in answers) and len(answers) in (1, ANNOTATORS):
        return ONE if len(answers) == 1 else TEN
    return WEIGHTED


def answer_references(answers: Sequence[tuple[float, str]]) -> list[str]:
    """Return the answers as references: with their confidence where it is a score."""
    if answer_form(answers) == WEIGHTED:
        return [f"{conf}{CONFIDENCE}{text}" for conf, text in answers]
    return [text for _, text in answers]


def reference_answers(references: Iterable[str]) -> list[tuple[float, str]]:
    """Return the (confidence, answer) pairs of references; without a confidence it is 1.0."""
    pairs = []
    for reference in references:
        number, mark, text = reference.strip().partition(CONFIDENCE)
        try:
            pairs.append((float(number), text) if mark else (1.0, number))
        except ValueError:  # the answer itself holds the mark
            pairs.append((1.0, reference))
    return pairs


def read_answer_list(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Return (place in the file, answer) of each candidate answer, in the file's order.

    The file is a text with one answer per line, or OFA's ``trainval_ans2label.pkl``: a pickled
    dictionary from answers to numbers. Raises ValueError for anything else.
    """
    path = Path(path)
    try:
        with regular_file(path).open("rb") as file:
            # Every pickle of Python 3 begins with this byte. Python 2 has others.
            if file.peek(1)[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
                answers = _read_pickle(file, path)
                numbered = enumerate(answers, start=1)
                return [(f"{path}, answer {number}", text) for number, text in numbered]
        lines = regular_file(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--answers {path}: the list of answers cannot be read ({error}). Give a text file "
            "with one answer per line, as `ofa-exit prepare` writes answers.txt, or OFA's "
            "trainval_ans2label.pkl"
        ) from error
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1)]


class _DataUnpickler(pickle.Unpickler):
    """An unpickler of texts, numbers and containers: it looks up no class and calls nothing."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may run code")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to data outside the file")


def _read_pickle(file: BinaryIO, path: Path) -> list[str]:
    """Return the keys of a pickled dictionary from texts to numbers."""
    try:
        labels = _DataUnpickler(file, encoding="utf-8").load()  # Python 2 stored bytes
    except Exception as error:  # a damaged pickle raises errors of almost any kind
        raise ValueError(
            f"--answers {path}: not a pickle of plain data ({type(error).__name__}: {error}). "
            "Write the answers into a text file, one per line"
        ) from error
    is_labels = isinstance(labels, dict) and all(
        isinstance(key, str) and type(value) is int for key, value in labels.items()
    )
    if not is_labels:
        raise ValueError(
            f"--answers {path}: the pickle holds no dictionary from answers to numbers. Give OFA's "
            "trainval_ans2label.pkl, or a text file with one answer per line"
        )
    return list(labels)

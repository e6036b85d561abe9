"""Rows of a user's own images: a folder, or a CSV file with texts."""

from __future__ import annotations

import base64
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ofa_exit.data.answers import CONFIDENCE, join_answers, parse_answers
from ofa_exit.data.formats import IMAGE_SUFFIXES, MAX_PIXELS, SEPARATOR
from ofa_exit.data.images import ImageError, decode_bytes, read_file
from ofa_exit.data.own_images import is_image_name
from ofa_exit.data.text import normalise_sentence, strip_punctuation
from ofa_exit.data.vqa import question_text
from ofa_exit.regular_files import regular_file

from .records import MalformedError, PrepareError, clean

# For each task the columns of its CSV file beside `image`; those in brackets may be missing.
CSV_COLUMNS = {
    "caption": ("[caption]",),
    "snli_ve": ("hypothesis", "[premise]", "[label]"),
    "vqa": ("question", "[answer]"),
}
# What the data sets read of a question.
_QUESTIONS: dict[str, Callable[[str], str]] = {
    "question": question_text,
    "hypothesis": normalise_sentence,
    "premise": normalise_sentence,
}
_DELIMITERS = "\t;,"


@dataclass
class OwnRow:
    """One row to write.

    Args:
        place: where it comes from, for messages.
        name: unique name.
        image: path of the image file.
        texts: the columns of `CSV_COLUMNS`, cleaned; "" where there is none.
        problem: why the row cannot be used.
    """

    place: str
    name: str
    image: Path
    texts: dict[str, str]
    problem: str = ""


def folder_rows(folder: Path) -> list[OwnRow]:
    """Return a row for every image file below a folder, in order of the names, without texts.

    Images of unsupported formats have rows, too, which `image_field` rejects.

    Raises PrepareError if there is none.
    """
    rows = []
    for parent, children, names in os.walk(folder):
        children[:] = sorted(name for name in children if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if is_image_name(name):
                label = " ".join(path.relative_to(folder).as_posix().split())
                rows.append(OwnRow(str(path), label, path, {}))
    if not rows:
        raise PrepareError(f"{folder} holds no image files ({', '.join(IMAGE_SUFFIXES)})")
    return rows


def csv_rows(path: Path, task: str) -> Iterator[OwnRow]:
    """Yield the rows of a CSV file with a header; with a problem those that cannot be used.

    Columns are separated by commas, semicolons or tabs. Image paths are relative to the file.
    A column ``id`` names the rows, which are numbered otherwise.

    Raises PrepareError: not such a file, or a column is missing.
    """
    with regular_file(path).open(encoding="utf-8-sig", newline="") as file:
        try:
            header = file.readline()
            delimiter = max(_DELIMITERS, key=header.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            _check_columns(path, columns, task)
            seen: set[str] = set()
            for number, fields in enumerate(reader, start=1):
                place = f"{path}:{reader.line_num}"
                if not any(map(str.strip, fields)):
                    continue
                try:
                    yield _csv_row(path, place, str(number), columns, fields, task, seen)
                except MalformedError as error:
                    yield OwnRow(place, "", path, {}, str(error))
        except (UnicodeDecodeError, csv.Error) as error:
            raise PrepareError(
                f"{path} is not a CSV file in UTF-8 ({error}). Save it as CSV UTF-8"
            ) from None


def _check_columns(path: Path, columns: Sequence[str], task: str) -> None:
    wanted = ["image", *CSV_COLUMNS[task]]
    missing = [name for name in wanted if not name.startswith("[") and name not in columns]
    if missing:
        raise PrepareError(
            f"{path}: the header {','.join(columns)!r} has no column {', '.join(missing)}. "
            f"--task {task} reads {', '.join(wanted)}"
        )
    other = [name for name in ("question", "hypothesis") if name in columns]
    if task == "caption" and other and "caption" not in columns:
        raise PrepareError(
            f"{path}: the header {','.join(columns)!r} has a {other[0]} and no caption. Give "
            f"--task {'vqa' if other[0] == 'question' else 'snli_ve'}"
        )
    twice = [name for name in columns if columns.count(name) > 1 and name]
    if twice:
        raise PrepareError(f"{path}: the header has the column {twice[0]} twice. Rename one")


def _csv_row(
    path: Path,
    place: str,
    number: str,
    columns: Sequence[str],
    fields: Sequence[str],
    task: str,
    seen: set[str],
) -> OwnRow:
    if len(fields) != len(columns):
        raise MalformedError(f"{len(fields)} columns, the header has {len(columns)}")
    values = dict(zip(columns, (field.strip() for field in fields)))
    if not values["image"]:
        raise MalformedError("no image")
    name = " ".join(values.get("id", "").split()) or number
    if name in seen:
        raise MalformedError(f"the id {name!r} occurs twice")
    seen.add(name)
    texts = {}
    for column in CSV_COLUMNS[task]:
        column = column.strip("[]")
        text = values.get(column, "")
        parts = text.split(SEPARATOR) if column in ("caption", "answer") else [text]
        texts[column] = SEPARATOR.join(clean(part, column) for part in parts if part.strip())
    _check_texts(texts)
    return OwnRow(place, name, Path(path.parent, values["image"]), texts)


def _check_texts(texts: dict[str, str]) -> None:
    """Raise MalformedError for texts that the data set of the task rejects."""
    for column, text in texts.items():
        if column == "caption" and text:
            wordless = [part for part in text.split(SEPARATOR) if not strip_punctuation(part)]
            if wordless:
                raise MalformedError(f"the caption {wordless[0]!r} has no words")
        # The premise may be missing, the others may not.
        read = _QUESTIONS.get(column)
        if read is not None and not read(text) and (text or column != "premise"):
            raise MalformedError(f"the {column} {text!r} has no words")
        if column == "answer" and CONFIDENCE in text:
            _check_confidences(text)


def _check_confidences(answers: str) -> None:
    try:
        confidences = [confidence for confidence, _ in parse_answers(answers)]
    except ValueError as error:
        raise MalformedError(f"the answers are malformed ({error})") from None
    if not all(0 < confidence <= 1 for confidence in confidences):
        raise MalformedError(f"the confidences of {answers!r} are not above 0 and at most 1")


def image_field(image: Path, out: Path | None, max_pixels: int = MAX_PIXELS) -> str:
    """Return the image column: base64 of the file, or its path relative to the folder ``out``.

    Raises MalformedError: the file is missing or no image, or its path cannot be written.
    """
    try:
        data = read_file(image.name, image.parent)
        decode_bytes(data, max_pixels, image.name)
    except ImageError as error:
        raise MalformedError(str(error)) from error
    if out is None:
        return base64.urlsafe_b64encode(data).decode("ascii")
    field = Path(os.path.relpath(image, out)).as_posix()
    if "." not in image.name or field != " ".join(field.split()):
        raise MalformedError(
            "a path needs a file extension, and no tabs, line breaks or double spaces. "
            "Rename the file, or leave --paths out"
        )
    return field


def _caption(row: OwnRow, image: str) -> list[str]:
    return [row.name, row.name, row.texts.get("caption", ""), "", image]


def _entailment(row: OwnRow, image: str) -> list[str]:
    return [
        row.name,
        row.name,
        image,
        *(row.texts[key] for key in ("hypothesis", "premise", "label")),
    ]


def _question(row: OwnRow, image: str) -> list[str]:
    answers = row.texts["answer"]
    if CONFIDENCE not in answers:
        answers = join_answers((1.0, text) for text in answers.split(SEPARATOR) if text)
    return [row.name, row.name, row.texts["question"], answers, "", image]


COLUMNS: dict[str, Callable[[OwnRow, str], list[str]]] = {
    "caption": _caption,
    "snli_ve": _entailment,
    "vqa": _question,
}
"""The columns of OFA's files, from a row and its image column."""


def split_captions(row: OwnRow) -> Iterator[OwnRow]:
    """Yield a row for each caption of ``row``."""
    captions = row.texts.get("caption", "").split(SEPARATOR)
    for number, caption in enumerate(captions, start=1):
        name = row.name if len(captions) == 1 else f"{row.name}#{number}"
        yield OwnRow(row.place, name, row.image, {**row.texts, "caption": caption})

"""Result files of the benchmarks, made from the output of fairseq-generate."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from ofa_exit.evaluation.metrics.snli_ve import label_of
from ofa_exit.regular_files import regular_file

_SHOWN = 5


def number(name: str) -> int:
    """Return the identifier as a number. Raises ValueError for others."""
    if not (name.isascii() and name.isdecimal()):
        raise ValueError(f"identifier {name!r} is not a number. Choose its column with --id-column")
    return int(name)


def _visdial_entry(name: str, text: str) -> dict[str, Any]:
    image, found, turn = name.rpartition("_")
    if not found:
        raise ValueError(f"identifier {name!r} is not IMAGE_ROUND. Choose it with --id-column")
    return {"image_id": number(image), "round_id": number(turn), "ranks": ranks_of_order(text)}


def ranks_of_order(text: str) -> list[int]:
    """Return the rank, from 1, of each candidate.

    Args:
        text: the candidates' numbers from 0, the best first.

    Raises ValueError if they are not a permutation.
    """
    words = text.split()
    order = [int(word) for word in words if word.isascii() and word.isdecimal()]
    if len(order) != len(words) or not order or sorted(order) != list(range(len(order))):
        raise ValueError(
            f"the generated text should rank the candidates, each number from 0 to "
            f"{max(len(words) - 1, 0)} once, and is {text[:40]!r}"
        )
    ranks = [0] * len(order)
    for rank, candidate in enumerate(order, start=1):
        ranks[candidate] = rank
    return ranks


def _answer(name: str, text: str) -> dict[str, Any]:
    return {"question_id": number(name), "answer": text}


def _caption(name: str, text: str) -> dict[str, Any]:
    return {"image_id": number(name), "caption": text}


# Benchmark → function from identifier and generated text to entry, and a help text.
FORMATS: dict[str, tuple[Callable[[str, str], dict[str, Any]], str]] = {
    "vqa": (_answer, "VQA v2; the identifier is the question's number"),
    "okvqa": (_answer, "OK-VQA; the identifier is the question's number"),
    "vqa_tsv": (
        lambda name, text: {"question_id": name, "answer": text},
        "own data in OFA's TSV format, which has no server, for ofa-exit score; the identifier is "
        "the question's",
    ),
    "vizwiz": (
        lambda name, text: {"image": name, "answer": text},
        "VizWiz-VQA; the identifier is the image's file name, VizWiz_val_00000000.jpg",
    ),
    "gqa": (
        lambda name, text: {"questionId": name, "prediction": text},
        "GQA; the identifier is the question's",
    ),
    "visdial": (
        _visdial_entry,
        "VisDial v1.0; the identifier is IMAGE_ROUND, the generated text the candidates' numbers "
        "from 0, the best first",
    ),
    "coco": (_caption, "COCO captions and RSICD; the identifier is the image's number"),
    "nocaps": (_caption, "NoCaps; the identifier is the image's number"),
    "snli_ve": (
        lambda name, text: {"pairID": name, "prediction": label_of(text)},
        "SNLI-VE, which has no server, for ofa-exit score; the identifier is the pair's (pairID)",
    ),
    "vqa_rad": (_answer, "VQA-RAD, for ofa-exit score; the identifier is the question's (qid)"),
}


def read_generated(paths: Sequence[str | os.PathLike[str]]) -> dict[int, str]:
    """Return row → best hypothesis of the outputs of fairseq-generate.

    With --nbest, a row's hypotheses follow each other, the best first. Raises ValueError, with file
    and line, for a truncated line, a row that was generated twice, or without any row.
    """
    texts: dict[int, str] = {}
    for path in paths:
        last = None
        with open(regular_file(path), encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.startswith("D-"):
                    continue
                name, *fields = line[2:].rstrip("\r\n").split("\t", 2)
                if not name.isdecimal() or len(fields) != 2:
                    raise ValueError(
                        f"{path}, line {number}: not D-ROW, score and text: {line[:60]!r}. "
                        "Generate it again"
                    )
                row = int(name)
                if row in texts and row != last:
                    raise ValueError(
                        f"{path}, line {number}: row {row} was generated before. Give the files "
                        "of one generation"
                    )
                texts.setdefault(row, fields[1])
                last = row
    if not texts:
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names}: no line D-…, so nothing was generated, or it ran with --quiet")
    return texts


def read_ids(path: str | os.PathLike[str], column: int) -> list[str]:
    """Return the identifiers of a TSV's rows, with one row in memory at a time.

    Raises ValueError, with file and line: no such column, an empty or a duplicate identifier.
    """
    names: dict[str, int] = {}
    with open(regular_file(path), "rb") as file:
        for line_number, line in enumerate(file, start=1):
            fields = line.rstrip(b"\r\n").split(b"\t", column + 1)
            if fields == [b""]:  # empty lines at the end are not rows
                continue
            where = f"{path}, line {line_number}"
            if line_number > len(names) + 1:
                raise ValueError(f"{where}: there is an empty line above it. Remove that")
            if column >= len(fields):
                raise ValueError(f"{where}: no column {column} (from 0) among {len(fields)}")
            name = fields[column].decode("utf-8-sig" if line_number == 1 else "utf-8").strip()
            if not name:
                raise ValueError(f"{where}: the identifier in column {column} is empty")
            if name in names:
                raise ValueError(
                    f"{where}: identifier {name} was in line {names[name]}. A result file has one "
                    "entry per identifier: choose its column with --id-column"
                )
            names[name] = line_number
    return list(names)


def make_results(
    benchmark: str,
    generated: Sequence[str | os.PathLike[str]],
    tsv: str | os.PathLike[str],
    id_column: int = 0,
    allow_missing: bool = False,
) -> list[dict[str, Any]]:
    """Return the entries of a result file, in the order of the TSV's rows.

    Raises ValueError, with file and row: a row without hypothesis (unless ``allow_missing``), a
    hypothesis without row, an identifier that the benchmark does not accept.
    """
    make_entry, _ = FORMATS[benchmark]
    texts = read_generated(generated)
    names = read_ids(tsv, id_column)
    beyond = [row for row in texts if row >= len(names)]
    if beyond:
        raise ValueError(
            f"{tsv} has {len(names)} rows, but row {beyond[0]}, counted from 0, was generated. "
            "Give the file that it was generated for"
        )
    missing = [row for row in range(len(names)) if row not in texts]
    if missing and not allow_missing:
        shown = ", ".join(str(row + 1) for row in missing[:_SHOWN])
        raise ValueError(
            f"{tsv}: {len(missing)} of {len(names)} rows have no hypothesis (lines {shown}"
            f"{', …' * (len(missing) > _SHOWN)}). Did the generation end, and did it skip rows "
            "(--skip-bad-rows), or share them among processes? --allow-missing leaves them out"
        )
    entries = []
    for row, name in enumerate(names):
        if row in texts:
            try:
                entries.append(make_entry(name, texts[row]))
            except ValueError as error:
                raise ValueError(f"{tsv}, line {row + 1}: {error}") from None
    return entries

"""Result files of the benchmarks, made from the output of fairseq-generate."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.metrics.snli_ve import label_of

_SHOWN = 5


def number(name: str) -> int:
    """The identifier as a number; ValueError if it is none."""
    if not (name.isascii() and name.isdecimal()):
        raise ValueError(f"identifier {name!r} is no number. Choose its column with --id-column")
    return int(name)


def _visdial_entry(name: str, text: str) -> dict[str, Any]:
    image, found, turn = name.rpartition("_")
    if not found:
        raise ValueError(f"identifier {name!r} is not IMAGE_ROUND. Choose it with --id-column")
    return {"image_id": number(image), "round_id": number(turn), "ranks": ranks_of_order(text)}


def ranks_of_order(text: str) -> list[int]:
    """Rank, from 1, of each candidate, where ``text`` has their numbers from 0, the best first.

    Raises ValueError where they are no permutation.
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


# Benchmark → entry of an identifier and its generated text, and what the identifier is.
FORMATS: dict[str, tuple[Callable[[str, str], dict[str, Any]], str]] = {
    "vqa": (_answer, "VQA v2; the identifier is the question's number"),
    "okvqa": (_answer, "OK-VQA; the identifier is the question's number"),
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
    "coco": (_caption, "COCO captions; the identifier is the image's number"),
    "nocaps": (_caption, "NoCaps; the identifier is the image's number"),
    "snli_ve": (
        lambda name, text: {"pairID": name, "prediction": label_of(text)},
        "SNLI-VE, which has no server, for ofa-exit score; the identifier is the pair's (pairID)",
    ),
}


def hypotheses(path: str | os.PathLike[str]) -> Iterator[tuple[int, int, str]]:
    """Line, from 1, row and text of each hypothesis in a file that fairseq-generate wrote.

    With --nbest a row's hypotheses follow each other, the best first. Raises ValueError, with file
    and line, for a line that is torn.
    """
    with open(path, encoding="utf-8", newline="\n") as file:
        for at, line in enumerate(file, start=1):
            if not line.startswith("D-"):
                continue
            row, _, rest = line[2:].rstrip("\r\n").partition("\t")
            _, found, text = rest.partition("\t")
            if not row.isdecimal() or not found:
                raise ValueError(f"{path}, line {at}: not D-ROW, score and text: {line[:60]!r}")
            yield at, int(row), text


def read_generated(paths: Sequence[str | os.PathLike[str]]) -> dict[int, str]:
    """Row → the best hypothesis, of the files that fairseq-generate wrote.

    Raises ValueError, with file and line, for a row that was generated twice, or if there is none.
    """
    texts: dict[int, str] = {}
    for path in paths:
        last = None
        for at, row, text in hypotheses(path):
            if row == last:
                continue
            last = row
            if row in texts:
                raise ValueError(
                    f"{path}, line {at}: row {row} was generated before. Give the files of "
                    "one generation"
                )
            texts[row] = text
    if not texts:
        raise nothing_generated(paths)
    return texts


def nothing_generated(paths: Sequence[str | os.PathLike[str]]) -> ValueError:
    """The error to raise about files without hypotheses."""
    names = ", ".join(map(str, paths))
    return ValueError(f"{names}: no line D-…, so nothing was generated, or it ran with --quiet")


def read_ids(path: str | os.PathLike[str], column: int) -> list[str]:
    """The identifiers of a TSV's rows, one row of images in memory at a time.

    Raises ValueError, with file and line: no such column, an empty identifier, one that comes
    twice.
    """
    names: dict[str, int] = {}
    with open(path, "rb") as file:
        for at, line in enumerate(file, start=1):
            fields = line.rstrip(b"\r\n").split(b"\t", column + 1)
            if fields == [b""]:  # empty lines at the end are no rows
                continue
            where = f"{path}, line {at}"
            if at > len(names) + 1:
                raise ValueError(f"{where}: there is an empty line above it. Remove that")
            if column >= len(fields):
                raise ValueError(f"{where}: no column {column} (from 0) among {len(fields)}")
            name = fields[column].decode("utf-8-sig" if at == 1 else "utf-8").strip()
            if not name:
                raise ValueError(f"{where}: the identifier in column {column} is empty")
            if name in names:
                raise ValueError(
                    f"{where}: identifier {name} was in line {names[name]}. A result file has one "
                    "entry for each: choose its column with --id-column"
                )
            names[name] = at
    return list(names)


def make_results(
    benchmark: str,
    generated: Sequence[str | os.PathLike[str]],
    tsv: str | os.PathLike[str],
    id_column: int = 0,
    allow_missing: bool = False,
) -> list[dict[str, Any]]:
    """The entries of a result file, in the order of the TSV's rows.

    Raises ValueError, with file and row, for rows without hypothesis (if not ``allow_missing``),
    hypotheses without row, and identifiers that the benchmark does not have.
    """
    make_entry, _ = FORMATS[benchmark]
    texts = read_generated(generated)
    names = read_ids(tsv, id_column)
    beyond = [row for row in texts if row >= len(names)]
    if beyond:
        raise ValueError(
            f"{tsv} has {len(names)} rows, and row {beyond[0]} was generated, counted from 0: it "
            "was another file"
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


def write_json(entries: list[dict[str, Any]], path: Path) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(entries, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)

"""What every setting answered to every sentence, its cost, and losses in [0, 1] made of them.

The file has one JSON object per line: what was run, and then one sentence each. The last line of a
batch ends in ``BATCH_END``. Losses of any metric are computed from it without a model.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.rouge.rouge import Rouge

from ofa_exit.evaluation.metrics.captions import plain_tokenize
from ofa_exit.evaluation.metrics.cider_d import CiderD
from ofa_exit.writing import append, write_errors

COSTS = ("time", "flops", "layers")
TOP_CIDER = 1000.0
"""CIDEr-D ×100 that counts as 1, its largest value (10)."""

BATCH_END = ', "ends_batch": true}'
"""End of the lines after which a run can resume. No text can hold it: its quotes are escaped."""

Score = Callable[[str, Sequence[str]], float]
"""From a text and the references of its row to 0 … 1."""


@dataclass(frozen=True)
class Sentence:
    """A row of the data under S settings.

    Attributes:
        row: its number in the file, from 0.
        references: its texts; empty without.
        texts: best hypothesis of each setting, [S].
        costs: by name (``COSTS``), [S] each: seconds, FLOPs, share of all layers (MuE Eq. 14).
        image: equal for rows of one image; empty in files of earlier versions.
    """

    row: int
    references: list[str]
    texts: list[str]
    costs: dict[str, list[float]]
    image: str = ""

    def line(self) -> str:
        """Return the sentence as JSON, each distinct text once."""
        number = {text: place for place, text in enumerate(dict.fromkeys(self.texts))}
        return json.dumps(
            {
                "row": self.row,
                "image": self.image,
                "references": self.references,
                "texts": list(number),
                "text": [number[text] for text in self.texts],
                "costs": {name: [*map(_short, self.costs[name])] for name in COSTS},
            },
            ensure_ascii=False,
        )

    @classmethod
    def of_line(cls, line: str) -> "Sentence":
        """Read what ``line`` wrote. Raises ValueError, KeyError, TypeError or IndexError."""
        saved = json.loads(line)
        texts = [saved["texts"][place] for place in saved["text"]]
        costs = {name: saved["costs"][name] for name in COSTS}
        if any(len(values) != len(texts) for values in costs.values()):
            raise ValueError("texts and costs of different numbers of settings")
        return cls(saved["row"], saved["references"], texts, costs, saved.get("image", ""))


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def read_sentences(path: Path) -> tuple[dict[str, Any], list[Sentence]]:
    """Return what was run, and the sentences so far, by row.

    Raises:
        ValueError: the file is none of ``ofa-exit calibrate``.
    """
    # Not splitlines: texts may hold other line breaks.
    first, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
    try:
        run = json.loads(first)
        if not isinstance(run, dict) or not isinstance(run["settings"], list):
            raise ValueError("no settings")
        found = [Sentence.of_line(line) for line in lines]
        if any(len(one.texts) != len(run["settings"]) for one in found):
            raise ValueError("a sentence of another number of settings")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} holds no sentences of ofa-exit calibrate ({error}). Delete it, or choose "
            "another --out"
        ) from error
    by_row = {one.row: one for one in found}
    return run, [by_row[row] for row in sorted(by_row)]


def reject_other_file(path: Path, head: str) -> None:
    """Raise ValueError for a file that no calibration began, before anything is cut off.

    Args:
        head: the first line to write; a killed process may have left its beginning only.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        first = stream.readline()
    if first.endswith(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if isinstance(json.loads(first)["settings"], list):
                return
    elif (head.encode() + b"\n").startswith(first[: len(head.encode()) - 1]):
        return
    raise ValueError(
        f"{path} holds no sentences of ofa-exit calibrate. Delete it, or choose another --out"
    )


def drop_torn_batch(path: Path) -> int:
    """Cut off what a killed process left of a last batch. Return the size, 0 for a missing file.

    A batch resumes as a whole, because the FLOPs of a sentence depend on the others of its batch.
    Files of earlier versions have no ends of batches. They lose only a torn line.
    """
    if not path.exists():
        return 0
    content, end = path.read_bytes(), f"{BATCH_END}\n".encode()
    place = content.rfind(end)
    size = content.rfind(b"\n") + 1 if place < 0 else place + len(end)
    if size < len(content):
        with write_errors(path):
            os.truncate(path, size)
    return size


class SentenceFile:
    """Appends sentences, so that an interrupted run can resume.

    Args:
        path: file that exists already, or is begun.
        run: what is run, as JSON; a file of another run is rejected.
        is_complete: every setting has to run on every batch, so that times and FLOPs can be
            compared.

    Raises:
        ValueError: the file is of another run, or of one that was not complete.
        WriteError: it cannot be written.
    """

    def __init__(self, path: Path, run: dict[str, Any], is_complete: bool = False) -> None:
        reject_other_file(path, json.dumps({**run, "complete": is_complete}, ensure_ascii=False))
        self.path, self.is_complete = path, is_complete
        self.sentences: list[Sentence] = []
        head = json.dumps({**run, "complete": is_complete}, ensure_ascii=False)
        if drop_torn_batch(path):
            saved, self.sentences = read_sentences(path)
            if different := [name for name in run if saved.get(name) != json.loads(head)[name]]:
                raise ValueError(
                    f"{path} is of another run ({', '.join(different)}). Delete it, or choose "
                    "another --out"
                )
            if is_complete and not saved.get("complete"):
                raise ValueError(
                    f"{path} has no times and FLOPs that can be compared. Delete it, or --save "
                    "layers"
                )
            self.is_complete = bool(saved.get("complete"))
        else:
            append(path, f"{_ending_batch(head)}\n".encode())

    @property
    def rows(self) -> set[int]:
        """Return the rows that are done."""
        return {one.row for one in self.sentences}

    def append(self, sentences: Iterable[Sentence]) -> None:
        """Add the sentences of a batch; rows that are there already are left out.

        Raises:
            WriteError: they cannot be written to their end. None of them is added.
        """
        done = self.rows
        added = [one for one in sentences if one.row not in done]
        if added:
            lines = [one.line() for one in added]
            text = "".join(f"{line}\n" for line in [*lines[:-1], _ending_batch(lines[-1])])
            append(self.path, text.encode())
            # As a resumed run reads them: costs have seven digits.
            self.sentences += map(Sentence.of_line, lines)


def _ending_batch(line: str) -> str:
    return line.removesuffix("}") + BATCH_END


# ------------------------------------------------------------------ losses


def costs_of(sentences: Sequence[Sentence], name: str) -> np.ndarray:
    """Return the costs of a name, float [S, N]."""
    return np.array([one.costs[name] for one in sentences]).T


def consistency_losses(
    sentences: Sequence[Sentence], similarity: Callable[[str, str], float]
) -> np.ndarray:
    """Return 1 - similarity to the answer of setting 0, the full model, float [S, N].

    Args:
        similarity: of two different texts, 0 to 1; equal ones have 1.
    """
    losses = []
    for one in sentences:
        full = one.texts[0]
        found = {text: 1 - similarity(text, full) for text in set(one.texts) - {full}}
        losses.append([found.get(text, 0.0) for text in one.texts])
    return np.clip(np.array(losses).T, 0, 1)


def drop_losses(sentences: Sequence[Sentence], score: Score) -> tuple[np.ndarray, np.ndarray]:
    """Return max(0, R(full) - R(setting)), float [S, N], and R(full), float [N].

    A better answer than the full model's counts as an equal one.
    """
    scores = []
    for one in sentences:
        found = {text: score(text, one.references) for text in set(one.texts)}
        scores.append([found[text] for text in one.texts])
    matrix = np.clip(np.array(scores, dtype=float).T, 0, 1)
    return np.maximum(matrix[0] - matrix, 0), matrix[0]


def same_text(text: str, other: str) -> float:
    """Return 1 for equal answers and otherwise 0. Extra spaces do not count."""
    return float(text.split() == other.split())


def rouge_l(text: str, other: str) -> float:
    """Return ROUGE-L of a caption, by another caption as its only reference."""
    return float(Rouge().calc_score([plain_tokenize(text)], [plain_tokenize(other)]))


def cider_score(references: Sequence[Sequence[str]]) -> Score:
    """Return CIDEr-D / 10 of a caption, with the n-gram counts of these references of all rows."""
    cider = CiderD.of_split(references)
    return lambda text, own: min(1.0, cider.score(text, own) / TOP_CIDER)

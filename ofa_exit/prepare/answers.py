"""Answers of visual question answering: confidence, field, and candidate list.

A row of these data sets is OFA's vqa_gen row: question-id, image-id, question, answers
(``confidence|!+answer`` joined by ``&&``), predicted objects (empty), image.

- **Training** has one row per question and answer, lower-cased. Its confidence weights the loss. It
  is the VQA challenge's: min(1, 0.3 · annotators who gave the answer), so 0.3, 0.6, 0.9 or 1.0.
- **Evaluation** has one row per question with the published answers of all ten annotators, in order
  and with repetitions, each as ``1.0|!+answer``: VQA accuracy needs all ten.
  Differs from OFA's release, which keeps distinct answers and their score.
- **Test** splits without published answers have an empty field.

The candidate list (answers.txt, one answer per line, most frequent first) counts the most common
answer of each question in train and validation. It keeps the answers of at least
``--min-occurrences`` questions. For VQA v2 and 9 questions these are the usual 3,129 answers, which
OFA uses. Training keeps only answers of the list.
Differs from that list's script (bottom-up attention), which runs the challenge's clean-up on
answers that are already clean in the release.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ofa_exit.data.answers import CONFIDENCE, join_answers
from ofa_exit.data.files import sha256_of, write_bytes

from . import manifest
from .images import Files
from .job import log
from .records import LeftOut, MalformedError, PrepareError, Record, clean
from .splits import Wanted

COLUMNS = ("question_id", "image_id", "question", "answers", "objects", "image")
ANNOTATORS = 10


def confidence(count: int) -> float:
    """Return min(1, 0.3 · count), the weight of an answer that ``count`` annotators gave."""
    return min(10, 3 * count) / 10


def annotators(answers: Any) -> tuple[str, ...]:
    """Return the ten answers of a question as published. Raises MalformedError."""
    given = tuple(_text(one["answer"]) for one in answers)
    if len(given) != ANNOTATORS:
        raise MalformedError(f"the question has {len(given)} answers, not {ANNOTATORS}")
    return given


def _text(answer: Any) -> str:
    # A number or an empty answer is an annotator's answer, too.
    text = clean(str(answer), "an answer") if str(answer).strip() else ""
    if CONFIDENCE in text:
        raise MalformedError(f"the answer {text!r} contains {CONFIDENCE}")
    return text


def most_common(answers: Sequence[str]) -> str:
    """Return the most frequent answer, the first in a tie, like VQA's multiple_choice_answer."""
    return Counter(answers).most_common(1)[0][0].lower()


def training_answers(
    answers: Iterable[str], candidates: frozenset[str] | None = None
) -> list[tuple[float, str]]:
    """Return (confidence, answer) of the distinct answers, in lower case.

    Args:
        candidates: keep only these answers; None keeps all.
    """
    counts = Counter(answer.lower() for answer in answers if answer)
    return [
        (confidence(count), answer)
        for answer, count in counts.items()
        if candidates is None or answer in candidates
    ]


def question_rows(
    id: str,
    image: str,
    names: tuple[str, ...],
    question: Any,
    answers: Sequence[str] | None,
    *,
    train: bool,
    candidates: frozenset[str] | None = None,
) -> Iterator[Record | LeftOut]:
    """Yield the rows of a question. ``answers`` is None where none are published."""
    text = clean(question, "the question").lower()

    def row(field: str) -> Record:
        return Record(id, names, (id, image, text, field, "", None))

    if answers is None:
        yield row("")
    elif not train:
        yield row(join_answers((1.0, answer) for answer in answers))
    else:
        kept = training_answers(answers, candidates)
        for pair in kept:
            yield row(join_answers([pair]))
        if not kept:
            why = "no answer among the candidates" if any(answers) else "no answer"
            yield LeftOut(id, names, why)


def candidate_list(
    options: argparse.Namespace,
    splits: Iterable[str],
    wanted: Wanted,
    files: Files,
    commonest: Callable[[Path], Iterable[str]],
) -> tuple[frozenset[str] | None, tuple[Path, ...]]:
    """Write answers.txt; return the candidates and their file, which is an input of training data.

    With --answers 0 and without training data there are none. The list keeps the most frequent
    answers, those of equal frequency in alphabetical order.

    Args:
        splits: the splits to make.
        wanted: the annotation files of training and validation.
        commonest: yields the most common answer of each question of an annotation file.
    Raises:
        PrepareError: no answer is left.
    """
    if not options.answers or not any(split.startswith("train") for split in splits):
        return None, ()
    path, least = options.out / "answers.txt", options.min_occurrences
    found = {names[0]: files.annotation(*names) for names in wanted.values()}
    absent = [name for name, source in found.items() if source is None]
    if absent:
        log(
            f"warning: {path}: {', '.join(absent)} is missing; the candidates come from the other "
            "answers alone and are not the usual ones"
        )
    sources = [source for source in found.values() if source is not None]
    counts = Counter(answer for source in sources for answer in commonest(source) if answer)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    frequent = [answer for answer, count in ranked if count >= least]
    kept = frequent[: options.answers]
    if not kept:
        raise PrepareError(f"{path}: no answer occurs {least} times. Lower --min-occurrences")
    if len(frequent) != options.answers:
        log(
            f"warning: {path}: {len(frequent):,} answers occur at least {least} times, "
            f"{options.answers:,} were asked for; {len(kept):,} are kept"
        )
    given = {"answers": options.answers, "min_occurrences": least}
    return write_candidates(path, kept, sources, given)


def write_candidates(
    path: Path, kept: Sequence[str], sources: Iterable[Path], given: Mapping[str, Any]
) -> tuple[frozenset[str], tuple[Path, ...]]:
    """Write answers.txt and its manifest; return the candidates and their file.

    Args:
        given: the options that the list depends on.
    """
    inputs = manifest.fingerprint(sources, given)
    manifest.check_release(path, inputs)
    write_bytes(path, "".join(f"{answer}\n" for answer in kept).encode("utf-8"))
    manifest.write_manifest(path, len(kept), path.stat(), sha256_of(path), inputs=inputs)
    log(f"{path}: {len(kept):,} candidate answers")
    return frozenset(kept), (path,)

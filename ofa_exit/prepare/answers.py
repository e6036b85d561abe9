"""Answers of visual question answering: their confidence, their field, and the candidate list.

A row of any of these data sets is OFA's vqa_gen row: question-id, image-id, question, answers
(``confidence|!+answer`` joined by ``&&``), predicted objects (empty), image.

- **Training** has one row a question and answer, lower-cased. Its confidence, which weighs the
  loss, is that of the VQA challenge: min(1, 0.3 · annotators who gave it), so 0.3, 0.6, 0.9 or 1.0.
- **Evaluation** has one row a question with the answers of all ten annotators as they are
  published, in order, repeated ones too, each as ``1.0|!+answer``: VQA accuracy needs all ten
  (``parse_answers`` gives them back).
  Differs from OFA's release, which keeps distinct answers and their score.
- **Test** splits without published answers have an empty field.

The candidate list for scoring all candidates (answers.txt, an answer a line, most frequent first)
counts each question's most common answer over train and validation and keeps those of at least
``--min-occurrences`` questions. For VQA v2 and 9 questions that is the usual list of 3,129 answers,
which OFA uses; training keeps answers in it alone.
Differs from that list's script (bottom-up attention), which runs the challenge's clean-up over
answers that the release has cleaned already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ofa_exit.data.answers import CONFIDENCE, join_answers
from ofa_exit.data.files import sha256_of, write_bytes

from . import manifest
from .job import say
from .records import LeftOut, MalformedError, PrepareError, Record, clean

COLUMNS = ("question_id", "image_id", "question", "answers", "objects", "image")
ANNOTATORS = 10


def confidence(count: int) -> float:
    """min(1, 0.3 · count): what an answer given by ``count`` annotators is worth in training."""
    return min(10, 3 * count) / 10


def annotators(answers: Any) -> tuple[str, ...]:
    """The ten answers of a question as published. Raises MalformedError."""
    given = tuple(_text(one["answer"]) for one in answers)
    if len(given) != ANNOTATORS:
        raise MalformedError(f"the question has {len(given)} answers, not {ANNOTATORS}")
    return given


def _text(answer: Any) -> str:
    # A number or an empty answer is still what an annotator said.
    text = clean(str(answer), "an answer") if str(answer).strip() else ""
    if CONFIDENCE in text:
        raise MalformedError(f"the answer {text!r} holds {CONFIDENCE}")
    return text


def most_common(answers: Sequence[str]) -> str:
    """The answer given most often, the first of equals; as VQA's multiple_choice_answer."""
    return Counter(answers).most_common(1)[0][0].lower()


def training_answers(
    answers: Iterable[str], candidates: frozenset[str] | None = None
) -> list[tuple[float, str]]:
    """The distinct answers of the annotators, in lower case, with their confidence; where
    ``candidates`` are given those among them."""
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
    """The rows of a question, see above; ``answers`` None where none are published."""
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


def write_candidates(
    path: Path,
    commonest: Iterable[str],
    sources: tuple[Path, ...],
    *,
    answers: int,
    min_occurrences: int,
) -> frozenset[str]:
    """Write the candidate list of each question's most common answer; returns it.

    The ``answers`` most frequent with at least ``min_occurrences`` questions, equals by the
    alphabet. Raises PrepareError when none is left.
    """
    ranked = sorted(Counter(commonest).items(), key=lambda one: (-one[1], one[0]))
    frequent = [answer for answer, count in ranked if answer and count >= min_occurrences]
    kept = frequent[:answers]
    if not kept:
        raise PrepareError(
            f"{path}: no answer occurs {min_occurrences} times. Lower --min-occurrences"
        )
    if len(frequent) != answers:
        say(
            f"warning: {path}: {len(frequent):,} answers occur at least {min_occurrences} times, "
            f"{answers:,} were asked for; {len(kept):,} are kept"
        )
    inputs = manifest.fingerprint(sources, {"answers": answers, "min_occurrences": min_occurrences})
    manifest.refuse_another_release(path, inputs)
    write_bytes(path, "".join(f"{answer}\n" for answer in kept).encode("utf-8"))
    manifest.write_manifest(
        path,
        {
            "output": {
                "file": path.name,
                "rows": len(kept),
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            },
            "inputs": inputs,
        },
    )
    say(f"{path}: {len(kept):,} candidate answers")
    return frozenset(kept)

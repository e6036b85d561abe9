"""Metrics of calibration: which a task has, and the losses per sentence that they make."""

from collections.abc import Iterable, Sequence

import numpy as np

from ofa_exit.data.answers import answer_form, reference_answers
from ofa_exit.evaluation.calibration.losses import (
    Score,
    Sentence,
    cider_score,
    consistency_losses,
    drop_losses,
    rouge_l,
    same_text,
)
from ofa_exit.evaluation.calibration.statistics import split_rows
from ofa_exit.evaluation.metrics.accuracy import is_correct
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.scorers.measures import MEASURES, Measure, choose_measure

CONSISTENCY = "consistency"
METRICS_OF_KIND = {
    "caption": (CONSISTENCY, "cider"),
    "snli_ve": (CONSISTENCY, "accuracy"),
    "vqa": (CONSISTENCY, "vqa", "accuracy"),
}
OWN_COUNTS = ("cider",)
"""Metrics that count n-grams in the references of the rows that find the path."""
METRICS = tuple(dict.fromkeys(name for names in METRICS_OF_KIND.values() for name in names))


def check_metric(metric: str, kind: str) -> None:
    """Raise UsageError if a kind of task lacks a metric."""
    known = METRICS_OF_KIND.get(kind)
    if known is None:
        raise UsageError(f"calibrate: tasks of the kind {kind} have no loss per sentence")
    if metric not in known:
        raise UsageError(f"--metric {metric}: {kind} has {', '.join(known)}")


def losses_of(
    sentences: Sequence[Sentence],
    metric: str,
    kind: str,
    finding: Sequence[int] | np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return losses [S, N], and the full model's scores [N]; None for consistency.

    CIDEr counts n-grams in the references of the rows that find the path. With those of the test
    rows, the losses of these would depend on each other.

    Args:
        finding: numbers of the sentences that find the path (default: as ``calibrate`` draws them).
    Raises:
        UsageError: the answers of the rows fit no one measure.
    """
    if metric == CONSISTENCY:
        similarity = rouge_l if kind == "caption" else same_text
        return consistency_losses(sentences, similarity), None
    if metric in OWN_COUNTS:
        finding = split_rows(len(sentences))[0] if finding is None else finding
        score = cider_score([sentences[row].references for row in finding])
    elif metric == "vqa":
        score = _vqa_score(sentences)
    else:
        score = _accuracy
    return drop_losses(sentences, score)


def _accuracy(text: str, references: Sequence[str]) -> float:
    return is_correct(text, [answer for _, answer in reference_answers(references)])


def _vqa_score(sentences: Sequence[Sentence]) -> Score:
    """Return the accuracy that fits the answers of all rows, as ``--scoring vqa`` chooses it."""
    measure = measure_of([reference_answers(one.references) for one in sentences])
    return lambda text, references: measure.value(text, reference_answers(references))


def measure_of(answers: Iterable[Sequence[tuple[float, str]]]) -> Measure:
    """Return the measure that fits the answers of all rows. Raises UsageError if none does."""
    try:
        return MEASURES[choose_measure([answer_form(one) or "" for one in answers])]
    except ValueError as error:
        raise UsageError(f"--metric vqa: {error}. Calibrate on rows of one kind") from error

"""Measures of answers to questions: which ones there are, and which one fits the data."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ofa_exit.data.answers import ANNOTATORS, ONE, TEN, WEIGHTED, answer_form
from ofa_exit.data.vqa import FIRST_ROWS, QuestionExamples
from ofa_exit.evaluation.metrics.vqa import ten_answers
from ofa_exit.evaluation.metrics.vqa_answers import answer_accuracy, vizwiz_answer_accuracy
from ofa_exit.evaluation.metrics.weighted_answers import answer_score, exact_match

Answers = Sequence[tuple[float, str]]
"""(confidence, answer) of a row."""

AUTO = "auto"


@dataclass(frozen=True)
class Measure:
    """The accuracy of one prediction.

    Args:
        title: its name in results.
        value: function from prediction and the row's answers to 0 … 1.
        count: how many answers a row must have. None: any number of distinct ones.
    """

    title: str
    value: Callable[[str, Answers], float]
    count: int | None = None

    def check(self, answers: Answers) -> None:
        """Raise ValueError for a row's answers that the measure is not defined on."""
        if not answers:
            raise ValueError(f"no answer, and {self.title} needs one")
        if self.count == ANNOTATORS:
            ten_answers([text for _, text in answers])
        elif self.count is not None and len(answers) != self.count:
            raise ValueError(f"{len(answers)} answers, and {self.title} is defined on one")
        elif self.count is None:
            check_distinct(answers)


def _vqa(prediction: str, answers: Answers) -> float:
    return answer_accuracy(prediction, [text for _, text in answers])


def _vizwiz(prediction: str, answers: Answers) -> float:
    return vizwiz_answer_accuracy(prediction, [text for _, text in answers])


def _gqa(prediction: str, answers: Answers) -> float:
    return float(prediction.strip() == answers[0][1])


# Equal to the scorers of the same names.
MEASURES = {
    "vqa_accuracy": Measure("VQA accuracy", _vqa, ANNOTATORS),
    "vizwiz_accuracy": Measure("VizWiz accuracy", _vizwiz, ANNOTATORS),
    "gqa_accuracy": Measure("GQA accuracy", _gqa, 1),
    "exact_match": Measure("exact match", exact_match),
    "ofa_score": Measure("OFA's score", answer_score),
}
VQA_METRICS = (AUTO, *MEASURES)
MEASURE_OF_FORM = {TEN: "vqa_accuracy", ONE: "exact_match", WEIGHTED: "ofa_score"}


def check_distinct(answers: Answers) -> None:
    """Raise ValueError for repeated answers: annotators, but not ten."""
    text, count = Counter(text for _, text in answers).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{len(answers)} answers, {text!r} among them {count} times. VQA accuracy needs those "
            f"of {ANNOTATORS} annotators; answers with a score are distinct"
        )


def choose_measure(forms: Sequence[str]) -> str:
    """Return the name of the measure that fits the forms of a file's rows.

    A file with one answer in some rows and several in others has weighted answers. Raises
    ValueError if only some rows have ten annotators' answers.
    """
    distinct = set(forms)
    if TEN in distinct and len(distinct) > 1:
        raise ValueError(f"some rows have the answers of {ANNOTATORS} annotators, others have not")
    return MEASURE_OF_FORM[WEIGHTED if WEIGHTED in distinct else min(distinct)]


def check_metric(name: str) -> None:
    """Raise ValueError if --vqa-metric has no such value."""
    if name not in VQA_METRICS:
        raise ValueError(f"--vqa-metric {name!r}: choose from {', '.join(VQA_METRICS)}")


def measure_of_rows(examples: QuestionExamples, name: str = AUTO) -> Measure:
    """Return the measure called ``name``; auto takes the one that fits the file's first rows.

    Raises ValueError: the first rows have no answers, or auto finds no measure that fits.
    """
    path = examples.file.path
    rows = [answers for _, answers in examples.first_answers(FIRST_ROWS)]
    if not rows:
        raise ValueError(
            f"{path}: --eval-acc needs answers, and none of the first rows has one. Validate "
            "on a split with answers, or leave --eval-acc out"
        )
    if name != AUTO:
        return MEASURES[name]
    try:
        return MEASURES[choose_measure([form for row in rows if (form := answer_form(row))])]
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Keep one kind, or name it with --vqa-metric") from None

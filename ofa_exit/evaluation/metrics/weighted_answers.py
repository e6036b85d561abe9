"""Accuracy of one answer where a question has one answer, or distinct answers with a score.

OFA's released files keep an answer's score from the VQA challenge, ``1.0|!+yes&&0.6|!+no``, and
its evaluation takes the score of the predicted answer in the row. Most own data sets have one
answer per question, of score 1.
"""

import re
from collections.abc import Sequence

# Where text is split into words, these symbols are words, too.
_AROUND_SYMBOLS = re.compile(r'\s*([?"])\s*')


def answer_score(prediction: str, answers: Sequence[tuple[float, str]]) -> float:
    """Return OFA's measure, 0 to 1: the score of the predicted answer in the row; 0 for others.

    Differs from OFA's code: case and extra spaces do not count, because training reads answers in
    lower case.

    Args:
        answers: (score, answer) of the row.
    """
    text = _plain(prediction)
    return max((score for score, answer in answers if _plain(answer) == text), default=0.0)


def exact_match(prediction: str, answers: Sequence[tuple[float, str]]) -> float:
    """Return 1 if the prediction is the answer of the highest score, or one of several, else 0."""
    best = max((score for score, _ in answers), default=0.0)
    return float(best > 0 and answer_score(prediction, answers) == best)


def _plain(text: str) -> str:
    return " ".join(_AROUND_SYMBOLS.sub(r"\1", text).split()).casefold()

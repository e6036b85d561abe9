"""The answer column of OFA's VQA files: ``1.0|!+yes&&0.6|!+no``."""

from __future__ import annotations

from collections.abc import Iterable

from ofa_exit.data.formats import SEPARATOR

CONFIDENCE = "|!+"


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

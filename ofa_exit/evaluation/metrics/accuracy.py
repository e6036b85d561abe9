"""Answer accuracy: the share of predictions that equal one of their references."""

from collections.abc import Sequence


def is_correct(prediction: str, references: Sequence[str], ignore_case: bool = False) -> bool:
    """Whether the prediction equals a reference, spaces at the ends and runs of spaces apart."""
    answer = _plain(prediction, ignore_case)
    return any(answer == _plain(reference, ignore_case) for reference in references)


def _plain(text: str, ignore_case: bool) -> str:
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text

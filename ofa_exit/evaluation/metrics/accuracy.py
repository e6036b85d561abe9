"""Answer accuracy: the fraction of predictions that equal a reference."""

from collections.abc import Sequence


def is_correct(prediction: str, references: Sequence[str], ignore_case: bool = False) -> bool:
    """Return whether the prediction equals a reference. Extra spaces do not count."""
    answer = _plain(prediction, ignore_case)
    return any(answer == _plain(reference, ignore_case) for reference in references)


def _plain(text: str, ignore_case: bool) -> str:
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text

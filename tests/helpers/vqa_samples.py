"""Rows of a small VQA file."""

from helpers import task_files as files

WORDS = (*files.WORDS, "colour", "is", "it", "dark", "2", "two")


def row(number: int, kind: str = "valid", objects: str = "") -> list[str]:
    """A question; answers by ``kind``: train, valid (ten), one, weighted, or test (none)."""
    colour = files.COLOURS[number % 6]
    ten = [colour] * 5 + ["dark"] * 2 + ["Dark Red", "no", ""]
    answers = {
        "train": f"{0.3 * (1 + number % 3):.1f}|!+{colour}",
        "valid": "&&".join(f"1.0|!+{answer}" for answer in ten),
        "one": f"1.0|!+{colour}",
        # The best answer comes last; every third row has a single one.
        "weighted": f"0.6|!+{colour}&&1.0|!+Dark {colour}" if number % 3 else f"0.9|!+{colour}",
        "test": "",
    }[kind]
    question = ["What colour is it?", "is it dark"][number % 2]
    return [f"q{number}", f"i{number}", question, answers, objects, files.image_field(colour)]

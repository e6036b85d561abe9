"""Rows of a small VQA file."""

from helpers import task_files as files

WORDS = (*files.WORDS, "colour", "is", "it", "dark", "2", "two")


def row(number: int, kind: str = "valid") -> list[str]:
    colour = files.COLOURS[number % 6]
    ten = [colour] * 5 + ["dark"] * 2 + ["Dark Red", "no", ""]
    answers = {
        "train": f"{0.3 * (1 + number % 3):.1f}|!+{colour}",
        "valid": "&&".join(f"1.0|!+{answer}" for answer in ten),
        "test": "",
    }[kind]
    question = ["What colour is it?", "is it dark"][number % 2]
    return [f"q{number}", f"i{number}", question, answers, "", files.image_field(colour)]

"""Rows of a task's TSV file, opened as its training opens them, for verbs that look at data.

What is slow to import (torch) is imported when rows are opened, after arguments have been parsed.
"""

import argparse
from pathlib import Path
from typing import Any

TASKS = ("caption", "snli_ve", "vqa", "visdial")
IMAGE_SIZE = 32  # pixels; a decoded image is resized, and looked at no further


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """Add the task and how its rows are read, with the names of the training's options."""
    parser.add_argument("--task", required=True, choices=TASKS, help="what the rows are for")
    parser.add_argument(
        "--selected-cols", metavar="COLS", help="numbers of the columns (default: OFA's)"
    )
    parser.add_argument("--add-caption", action="store_true", help="snli_ve: read the premise, too")
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        help="snli_ve: labels of the file, as in true,false or true=yes,false=no",
    )


def example_classes() -> dict[str, Any]:
    """Return the data set of each task."""
    from ofa_exit.data.caption import CaptionExamples
    from ofa_exit.data.snli_ve import EntailmentExamples
    from ofa_exit.data.visdial import DialogExamples
    from ofa_exit.data.vqa import QuestionExamples

    classes = (CaptionExamples, EntailmentExamples, QuestionExamples, DialogExamples)
    return dict(zip(TASKS, classes, strict=True))


def prompt_texts(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the texts that ``args.task`` adds to every row."""
    from ofa_exit.data.snli_ve import source_text

    if args.task == "snli_ve":
        return (source_text("", "" if args.add_caption else None),)
    return example_classes()[args.task].PROMPT_TEXTS


def open_examples(path: Path, args: argparse.Namespace, encoder: Any, **options: Any) -> Any:
    """Return the rows of a file as examples of ``args.task``.

    Args:
        args: the options of `add_row_options`.
        encoder: text to tokens.
        options: further arguments of the examples.
    """
    from ofa_exit.data.images import ImageLoader

    if args.task == "snli_ve":
        options.update(add_caption=args.add_caption, labels=args.labels)
    return example_classes()[args.task](
        path, encoder, ImageLoader(IMAGE_SIZE), selected_cols=args.selected_cols, **options
    )

"""Rows of a task's TSV file, opened as its training opens them, for verbs that look at data.

What is slow to import (torch) is imported when rows are opened, after arguments have been parsed.
"""

import argparse
from pathlib import Path
from typing import Any

from ofa_exit.data.formats import MAX_PIXELS

TASKS = ("caption", "snli_ve", "vqa", "visdial")
ALIASES = {"entailment": "snli_ve"}
IMAGE_SIZE = 32  # pixels; a decoded image is resized, and looked at no further


def task_name(text: str) -> str:
    """Return the task of a value of --task, which may also be fairseq's name (mue_caption)."""
    text = text.removeprefix("mue_")
    return ALIASES.get(text, text)


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """Add the task and how its rows are read, with the names of the training's options."""
    parser.add_argument(
        "--task",
        required=True,
        type=task_name,
        choices=TASKS,
        help="what the rows are for; entailment is snli_ve, too",
    )
    parser.add_argument(
        "--selected-cols", metavar="COLS", help="numbers of the columns (default: OFA's)"
    )
    parser.add_argument("--add-caption", action="store_true", help="snli_ve: read the premise, too")
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        help="snli_ve: labels of the file, as in true,false or true=yes,false=no",
    )
    parser.add_argument(
        "--add-object", action="store_true", help="vqa: read the predicted objects, too"
    )
    parser.add_argument(
        "--max-object-length", type=int, metavar="N",
        help="vqa: largest number of predicted objects to read (default: as in training)",
    )  # fmt: skip


def add_image_limit(parser: argparse.ArgumentParser) -> None:
    """Add the largest size of images."""
    parser.add_argument(
        "--max-image-pixels", type=int, default=MAX_PIXELS, metavar="N",
        help="largest image to read, width times height (%(default)s)",
    )  # fmt: skip


def example_classes() -> dict[str, Any]:
    """Return the data set of each task."""
    from ofa_exit.data.caption import CaptionExamples
    from ofa_exit.data.snli_ve import EntailmentExamples
    from ofa_exit.data.visdial import DialogExamples
    from ofa_exit.data.vqa import QuestionExamples

    classes = (CaptionExamples, EntailmentExamples, QuestionExamples, DialogExamples)
    return dict(zip(TASKS, classes, strict=True))


def open_examples(
    path: Path,
    args: argparse.Namespace,
    encoder: Any,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Any:
    """Return the rows of a file as examples of ``args.task``.

    Args:
        args: the options of `add_row_options`.
        encoder: text to tokens.
        max_pixels: largest image to read.
        options: further arguments of the examples.

    Raises ValueError for options that do not fit the task.
    """
    from ofa_exit.data.images import ImageLoader

    if args.add_object and args.task != "vqa":
        raise ValueError(f"--add-object: --task {args.task} reads no objects. Leave it out")
    if args.task == "snli_ve":
        options.update(add_caption=args.add_caption, labels=args.labels)
    elif args.task == "vqa":
        options.update(add_object=args.add_object)
        if args.max_object_length is not None:
            if args.max_object_length < 1:
                raise ValueError(f"--max-object-length {args.max_object_length}: give at least 1")
            options.update(max_object_length=args.max_object_length)
    load_image = ImageLoader(IMAGE_SIZE, max_pixels=max_pixels)
    return example_classes()[args.task](
        path, encoder, load_image, selected_cols=args.selected_cols, **options
    )

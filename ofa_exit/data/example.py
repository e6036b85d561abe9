"""One example, ready to be batched, and the checks that every kind of example shares."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ofa_exit.data.images import ImageError, ImageLoader, looks_like_image
from ofa_exit.data.text import Vocabulary
from ofa_exit.data.tsv import TsvFile

PROMPT_TYPES = ("none", "src", "prev_output")
IMAGE_FIELD = "image"


@dataclass
class Example:
    """What one row gives; L is the length of ``prev_output`` and ``target``.

    ``prompt_length`` tokens of ``prev_output`` (bos at least) are fed before the answer; their
    targets are pad. ``references`` are the row's texts as they are; ``unknown`` the symbols
    that the vocabulary lacks. ``candidates``: tokens of the row's own answers to choose from, no
    eos.
    """

    index: int
    uniq_id: str
    source: Tensor
    prev_output: Tensor
    target: Tensor
    prompt_length: int
    image: Tensor | None
    references: list[str]
    unknown: list[str]
    constraint_mask: Tensor | None = None
    conf: float | None = None
    candidates: list[list[int]] | None = None


def source_sequence(text: Tensor, vocabulary: Vocabulary) -> Tensor:
    """bos, text, eos."""
    bos, eos = text.new_tensor([[vocabulary.bos()], [vocabulary.eos()]])
    return torch.cat([bos, text, eos])


def answer_sequences(
    source: Tensor, answer: Tensor, prompt_type: str, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor, int]:
    """Decoder input, target and prompt length for ``answer`` Long[A] (no bos, no eos).

    The prompt is bos ("none"), the whole source ("src") or the source without its eos
    ("prev_output"). The target is the input moved by one with eos at the end, pad up to the
    answer: the loss ignores the prompt.
    """
    prompts = {"none": source[:1], "src": source, "prev_output": source[:-1]}
    if prompt_type not in prompts:
        raise ValueError(f"prompt type {prompt_type!r} is none of {', '.join(PROMPT_TYPES)}")
    prompt = prompts[prompt_type]
    ignored = prompt.new_full((len(prompt) - 1,), vocabulary.pad())
    target = torch.cat([ignored, answer, answer.new_tensor([vocabulary.eos()])])
    return torch.cat([prompt, answer]), target, len(prompt)


def read_text(file: TsvFile, index: int, row: dict[str, str], field: str) -> str:
    """The text of ``field``, single spaces. Raises TsvError: empty, or an image."""
    text = row[field]
    if looks_like_image(text):
        raise file.error(
            index,
            field,
            f"column {file.column_of(field)} holds an image, not text",
            f"Choose the columns of {', '.join(file.columns)} with --selected-cols",
        )
    text = " ".join(text.split())
    if not text:
        raise file.error(index, field, "the field is empty", "Fill it in or remove the line")
    return text


def read_image(
    file: TsvFile, index: int, row: dict[str, str], load_image: ImageLoader
) -> Tensor | None:
    """The picture; None where the field is empty and no other column holds an image.

    Raises TsvError, naming a likelier column where there is one.
    """
    message, remedy = "the field is empty", ""
    try:
        image = load_image(row[IMAGE_FIELD])
    except ImageError as error:
        image, message, remedy = None, error.message, error.remedy
    if image is not None:
        return image
    others = [at for at, field in enumerate(file.fields(index)) if looks_like_image(field)]
    if others and not looks_like_image(row[IMAGE_FIELD]):
        remedy = (
            f"Column {file.column_of(IMAGE_FIELD)} was read; column {others[0]} looks like an "
            f"image: choose the columns of {', '.join(file.columns)} with --selected-cols"
        )
    if remedy:
        raise file.error(index, IMAGE_FIELD, message, remedy)
    return None


def check_length(
    file: TsvFile, index: int, field: str, tokens: Tensor, limit: int, option: str
) -> None:
    """Raises TsvError when ``tokens`` are more than the model has positions for."""
    if len(tokens) > limit:
        raise file.error(
            index,
            field,
            f"the row makes {len(tokens)} tokens, more than the {limit} positions of the model",
            f"Shorten the text or raise {option}",
        )

"""One example, ready to be batched, and the token sequences that every data set shares."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ofa_exit.data.text import Vocabulary

PROMPT_TYPES = ("none", "src", "prev_output")


@dataclass
class Example:
    """One row as tensors: T source tokens, L decoder positions, V words in the vocabulary.

    Args:
        index: number of the row, from 0.
        source: Long [T], with bos and eos.
        prev_output: Long [L], the decoder's input: the prompt (at least bos), then the answer.
        target: Long [L], pad under the prompt but for its last position.
        prompt_length: tokens of ``prev_output`` before the answer.
        image: Float [3, H, W], or None for a row without an image.
        references: the row's texts as they are in the file.
        unknown: symbols that the vocabulary lacks.
        constraint_mask: Bool [L, V], True for the words allowed at each position.
        conf: weight of the row in the loss.
        candidates: tokens of the row's own answers to choose from, without eos.
        image_id: equal numbers stand for equal images. None: the image is not shared.
        image_key: a hash of the row's image field, or of the row's number if that is empty.
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
    image_id: int | None = None
    image_key: int = 0


def source_prompt(source: Tensor, prompt_type: str) -> Tensor:
    """Return the decoder prompt that ``source`` makes, Long [P].

    It is bos ("none"), the whole source ("src") or the source without its eos ("prev_output").
    """
    return {"none": source[:1], "src": source, "prev_output": source[:-1]}[prompt_type]


def answer_sequences(
    prompt: Tensor, answer: Tensor, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor, int]:
    """Return decoder input Long [L], target Long [L] and prompt length.

    The target is the input shifted by one, with eos at the end and pad before the answer: the loss
    ignores the prompt.

    Args:
        prompt: Long [P], bos first.
        answer: Long [A], without bos and eos.
    """
    ignored = prompt.new_full((len(prompt) - 1,), vocabulary.pad())
    target = torch.cat([ignored, answer, answer.new_tensor([vocabulary.eos()])])
    return torch.cat([prompt, answer]), target, len(prompt)

"""Captioning rows: an image and its captions."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ofa_exit.data.formats import CAPTION_COLS, SEPARATOR
from ofa_exit.data.row_examples import Row, RowExamples, RowTokens
from ofa_exit.data.text import TextEncoder, strip_punctuation

COLUMNS = ("uniq_id", "image", "caption")
PROMPT = " what does the image describe?"


def encode_caption_prompt(text: str, encoder: TextEncoder) -> Tensor:
    """Return the tokens of a prompt that captions continue, Long [P].

    Raises:
        ValueError: the prompt is empty, or the dictionary lacks one of its words.
    """
    unknown: list[str] = []
    words = text.split()
    if not words:
        raise ValueError(f"--caption-prompt {text!r} has no words. Give some, or leave it out")
    tokens = encoder.encode(" " + " ".join(words), unknown)
    if unknown:
        raise ValueError(
            f"--caption-prompt {text!r}: the dictionary lacks {unknown[0]!r}. Use other words"
        )
    return tokens


class CaptionExamples(RowExamples):
    """Examples of an OFA captioning file.

    The source is OFA's fixed question, the target `` caption`` without punctuation. A training row
    has one caption, cut to ``max_tgt_length`` words. Other rows have one or several captions joined
    by ``&&``, uncut: all are references, and the first is the target. With ``all_references``
    training rows may have several, too. With ``captions_optional`` or ``references_optional`` rows
    may have none: they have no references, and only eos as target. With ``references_optional`` a
    caption without words is no reference. With ``caption_prompt``, Long [P], the decoder is fed
    these tokens before the caption.
    """

    COLUMNS = COLUMNS
    SELECTED_COLS = CAPTION_COLS
    SOURCE_FIELD = ANSWER_FIELD = "caption"

    def __init__(
        self,
        *arguments: Any,
        all_references: bool = False,
        captions_optional: bool = False,
        caption_prompt: Tensor | None = None,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self.one_caption = self.train and not all_references
        self.captions_optional = captions_optional or self.references_optional
        self.caption_prompt = torch.zeros(0, dtype=torch.long)
        if caption_prompt is not None:
            self.caption_prompt = caption_prompt
        self._unknown_in_prompt: list[str] = []
        self.source = self.encode_source(PROMPT, self._unknown_in_prompt)
        if len(self.source) > self.max_source_positions:
            raise ValueError(
                f"the prompt makes {len(self.source)} tokens, more than the model's "
                f"{self.max_source_positions} positions: raise --max-source-positions"
            )

    @classmethod
    def prompt_texts(cls, options: Any) -> tuple[str, ...]:
        return (PROMPT,)

    @cached_property
    def lengths(self) -> tuple[int, int]:
        return len(self.source), len(self.caption_prompt) + self.max_tgt_length + 1

    def prompt(self, source: Tensor) -> Tensor:
        return torch.cat([source[:1], self.caption_prompt])

    def read(self, row: Row, unknown: list[str]) -> RowTokens:
        is_empty = self.captions_optional and not row["caption"].strip()
        references = [] if is_empty else self._references(row)
        if not references:
            return RowTokens(self.source, torch.zeros(0, dtype=torch.long), [])
        words = strip_punctuation(references[0]).split()
        if self.train:
            words = words[: self.max_tgt_length]
        unknown += self._unknown_in_prompt
        answer = self.encoder.encode(" " + " ".join(words), unknown)
        return RowTokens(self.source, answer, references)

    def _references(self, row: Row) -> list[str]:
        captions = [part.strip() for part in row.text("caption").split(SEPARATOR)]
        if self.one_caption and len(captions) > 1:
            # Without punctuation, "&&" would vanish and join two captions into one.
            raise row.error(
                "caption",
                f"{len(captions)} captions joined by {SEPARATOR} in training data",
                "Give each caption its own line (only --criterion mue_scst trains on such rows), "
                "or check --selected-cols",
            )
        if self.references_optional:
            return list(filter(strip_punctuation, captions))
        for number, caption in enumerate(captions, start=1):
            if not strip_punctuation(caption):
                raise row.error(
                    "caption",
                    f"caption {number} of {len(captions)} has no words",
                    "Fill it in or remove it",
                )
        return captions

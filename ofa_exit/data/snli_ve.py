"""Visual entailment rows: does an image (and a premise) entail a hypothesis?"""

from functools import cached_property
from typing import Any

import torch

from ofa_exit.data.row_examples import Row, RowExamples, RowTokens
from ofa_exit.data.text import TextEncoder, normalise_sentence

COLUMNS = ("uniq_id", "image", "hypothesis", "premise", "label")
# uniq-id, image-id, image, hypothesis, caption (the premise), label
OFFICIAL_COLS = "0,2,3,4,5"
ANSWER_WORDS = ("yes", "maybe", "no")
_LABELS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
_LABELS.update({word: word for word in ANSWER_WORDS})


def answer_tokens(encoder: TextEncoder) -> dict[str, list[int]]:
    """Return the tokens of each answer word, without bos and eos.

    Raises ValueError if the dictionary lacks one.
    """
    answers = {}
    for word in ANSWER_WORDS:
        unknown: list[str] = []
        answers[word] = encoder.encode(f" {word}", unknown).tolist()
        if unknown or not answers[word]:
            raise ValueError(
                f"the dictionary lacks the answer {word!r}: entailment needs "
                f"{', '.join(ANSWER_WORDS)} in dict.txt"
            )
    return answers


def source_text(hypothesis: str, premise: str | None) -> str:
    """Return OFA's question; without a premise it is about the image alone."""
    if premise is not None:
        return f' can image and text1 " {premise} " imply text2 " {hypothesis} "?'
    return f' does the image describe " {hypothesis} "?'


class EntailmentExamples(RowExamples):
    """Examples of an OFA SNLI-VE file.

    The source is `` does the image describe " H "?``, or with ``add_caption``
    `` can image and text1 " P " imply text2 " H "?``; H and P are cut to ``max_src_length`` words.
    Labels are entailment, neutral and contradiction, or yes, maybe and no, which are the answers.
    """

    COLUMNS = COLUMNS
    SELECTED_COLS = OFFICIAL_COLS
    SOURCE_FIELD = ANSWER_FIELD = "hypothesis"

    def __init__(self, *arguments: Any, add_caption: bool = False, **options: Any):
        super().__init__(*arguments, **options)
        self.add_caption = add_caption
        self.answers = answer_tokens(self.encoder)

    @cached_property
    def lengths(self) -> tuple[int, int]:
        source = len(self.encode_source(self._source_text("", ""), []))
        source += self.max_src_length * (1 + self.add_caption)
        answer = max(map(len, self.answers.values())) + 1
        return source, answer + (source if self.prompt_type != "none" else 0)

    def read(self, row: Row, unknown: list[str]) -> RowTokens:
        word = self._answer_word(row)
        hypothesis = self._sentence(row, "hypothesis")
        premise = self._sentence(row, "premise") if self.add_caption else ""
        source = self.encode_source(self._source_text(hypothesis, premise), unknown)
        return RowTokens(source, torch.tensor(self.answers[word]), [word])

    def _source_text(self, hypothesis: str, premise: str) -> str:
        return source_text(hypothesis, premise if self.add_caption else None)

    def _sentence(self, row: Row, field: str) -> str:
        text = normalise_sentence(row.text(field), self.max_src_length)
        if not text:
            raise row.error(field, f"{row[field]!r} has no words", "Fill it in or remove the line")
        return text

    def _answer_word(self, row: Row) -> str:
        label = row.text("label")
        if label.lower() in _LABELS:
            return _LABELS[label.lower()]
        excerpt = label if len(label) <= 40 else label[:40] + "…"
        fields = self.file.fields(row.index)
        others = [column for column, text in enumerate(fields) if text.strip().lower() in _LABELS]
        remedy = f"Labels are {', '.join(_LABELS)}"
        if others:
            remedy += (
                f"; column {self.file.column_of('label')} was read and column {others[0]} looks "
                f"like a label: choose the columns of {', '.join(COLUMNS)} with --selected-cols"
            )
        raise row.error("label", f"unknown label {excerpt!r}", remedy)

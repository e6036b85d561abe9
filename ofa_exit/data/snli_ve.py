"""Visual entailment rows: does an image (and a premise) entail a hypothesis?"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ofa_exit.data.row_examples import Row, RowExamples, RowTokens
from ofa_exit.data.text import TextEncoder, normalise_sentence

COLUMNS = ("uniq_id", "image", "hypothesis", "premise", "label")
# uniq-id, image-id, image, hypothesis, caption (the premise), label
OFFICIAL_COLS = "0,2,3,4,5"
OFFICIAL_LABELS = "entailment=yes,neutral=maybe,contradiction=no"


def parse_labels(labels: str | None) -> dict[str, str]:
    """Return the answer of each label in lower case; an answer is a label of itself.

    Args:
        labels: LABEL=ANSWER or LABEL, which is its own answer, separated by commas. None: OFA's.

    Raises:
        ValueError: fewer than two answers, an empty one, or a label that comes twice.
    """
    answers: dict[str, str] = {}
    for part in (labels or OFFICIAL_LABELS).split(","):
        label, equals, answer = (text.strip().lower() for text in part.partition("="))
        answer = answer if equals else label
        if not label or not answer or label in answers:
            problem = "comes twice" if label in answers else "is empty"
            raise ValueError(
                f"--labels {labels!r}: {part.strip()!r} {problem}. Give LABEL or LABEL=ANSWER, "
                "separated by commas"
            )
        answers[label] = answer
    if len(set(answers.values())) < 2:
        raise ValueError(f"--labels {labels!r}: give two answers or more, as in true,false")
    # A label of another answer keeps it.
    return {**{answer: answer for answer in answers.values()}, **answers}


def answer_tokens(encoder: TextEncoder, labels: str | None = None) -> dict[str, list[int]]:
    """Return the tokens of each answer, without bos and eos.

    Raises ValueError if the dictionary lacks one.
    """
    words = list(dict.fromkeys(parse_labels(labels).values()))
    answers: dict[str, list[int]] = {}
    for word in words:
        unknown: list[str] = []
        tokens = encoder.encode(f" {word}", unknown).tolist()
        if unknown or not tokens:
            raise ValueError(
                f"the dictionary lacks the answer {word!r}: entailment needs {', '.join(words)} in "
                "dict.txt. Write one with ofa-exit dict, or choose other answers with --labels"
            )
        answers[word] = tokens
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
    Labels are entailment, neutral and contradiction, or yes, maybe and no, which are the answers,
    or those of ``labels`` (see `parse_labels`). With ``references_optional`` a row may have none:
    it has no reference, its target is eos alone and its mask allows everything.
    """

    COLUMNS = COLUMNS
    SELECTED_COLS = OFFICIAL_COLS
    SOURCE_FIELD = ANSWER_FIELD = "hypothesis"

    def __init__(
        self,
        *arguments: Any,
        add_caption: bool = False,
        labels: str | None = None,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        self.add_caption = add_caption
        self.labels = parse_labels(labels)
        self.answers = answer_tokens(self.encoder, labels)

    @classmethod
    def prompt_texts(cls, options: Any) -> tuple[str, ...]:
        return (source_text("", "" if options.add_caption else None),)

    @cached_property
    def lengths(self) -> tuple[int, int]:
        source = len(self.encode_source(self._source_text("", ""), []))
        source += self.max_src_length * (1 + self.add_caption)
        answer = max(map(len, self.answers.values())) + 1
        return source, answer + (source if self.prompt_type != "none" else 0)

    def read(self, row: Row, unknown: list[str]) -> RowTokens:
        is_labelled = bool(row["label"].strip()) or not self.references_optional
        word = self._answer_word(row) if is_labelled else None
        hypothesis = self._sentence(row, "hypothesis")
        premise = self._sentence(row, "premise") if self.add_caption else ""
        source = self.encode_source(self._source_text(hypothesis, premise), unknown)
        if word is None:
            return RowTokens(source, torch.zeros(0, dtype=torch.long), [])
        return RowTokens(source, torch.tensor(self.answers[word]), [word])

    def mask(self, target: Tensor, prompt_length: int, answer: Tensor) -> Tensor | None:
        if self.trie is not None and not len(answer):
            return torch.ones(len(target), len(self.encoder.vocabulary), dtype=torch.bool)
        return super().mask(target, prompt_length, answer)

    def _source_text(self, hypothesis: str, premise: str) -> str:
        return source_text(hypothesis, premise if self.add_caption else None)

    def _sentence(self, row: Row, field: str) -> str:
        text = normalise_sentence(row.text(field), self.max_src_length)
        if not text:
            raise row.error(field, f"{row[field]!r} has no words", "Fill it in or remove the line")
        return text

    def _answer_word(self, row: Row) -> str:
        label = row.text("label")
        if label.lower() in self.labels:
            return self.labels[label.lower()]
        excerpt = label if len(label) <= 40 else label[:40] + "…"
        fields = [text.strip().lower() for text in self.file.fields(row.index)]
        others = [column for column, text in enumerate(fields) if text in self.labels]
        remedy = f"Labels are {', '.join(self.labels)}; name others with --labels"
        if others:
            remedy += (
                f"; column {self.file.column_of('label')} was read and column {others[0]} looks "
                f"like a label: choose the columns of {', '.join(COLUMNS)} with --selected-cols"
            )
        raise row.error("label", f"unknown label {excerpt!r}", remedy)

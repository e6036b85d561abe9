"""Visual question answering rows: an image, a question, and its answers."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ofa_exit.data.answers import answer_references, parse_answers, read_answer_list
from ofa_exit.data.formats import SEPARATOR
from ofa_exit.data.row_examples import Row, RowExamples, RowTokens
from ofa_exit.data.text import TextEncoder, normalise_sentence
from ofa_exit.data.tsv import TsvError

COLUMNS = ("uniq_id", "image", "question", "answers")
# question-id, image-id, question, answers, predicted objects, image
OFFICIAL_COLS = "0,5,2,3"
OFFICIAL_COLS_WITH_OBJECTS = "0,5,2,3,4"
MAX_OBJECTS = 30
FIRST_ROWS = 1000  # read when a file is opened, to see what kind of answers and objects it has

Answers = list[tuple[float, str]]


def read_answers(path: str | os.PathLike, encoder: TextEncoder) -> dict[str, list[int]]:
    """Return the candidate answers of a file with their tokens, see `read_answer_list`.

    The tokens have neither bos nor eos. Raises ValueError, with the place: an empty answer, an
    answer that the dictionary cannot spell, two answers with the same tokens, fewer than two
    answers.
    """
    answers: dict[str, list[int]] = {}
    known: dict[tuple[int, ...], str] = {}
    for where, line in read_answer_list(path):
        text = " ".join(line.split())
        unknown: list[str] = []
        tokens = encoder.encode(f" {text}", unknown).tolist() if text else []
        if not tokens:
            raise ValueError(f"{where}: an empty answer. Remove it")
        if unknown:
            raise ValueError(f"{where}: the dictionary lacks {unknown[0]!r} of the answer {text!r}")
        if tuple(tokens) in known:
            other = known[tuple(tokens)]
            raise ValueError(f"{where}: {text!r} is the same answer as {other!r}. Remove one")
        known[tuple(tokens)] = text
        answers[text] = tokens
    if len(answers) < 2:
        raise ValueError(f"{path} has {len(answers)} answers: there is nothing to choose from")
    return answers


def object_text(field: str, max_objects: int) -> str:
    """Return what OFA adds to a question: `` object: `` and the first predicted objects.

    Args:
        field: objects joined by ``&&``. Without any, OFA adds the words alone.
    """
    return f" object: {' '.join(field.strip().split(SEPARATOR)[:max_objects])}"


def question_text(text: str, max_words: int | None = None) -> str:
    """Return `` question?`` as OFA asks it, cut to ``max_words``; empty if there is no word."""
    words = normalise_sentence(text, max_words).rstrip("? ")
    return f" {words}?" if words else ""


class QuestionExamples(RowExamples):
    """Examples of an OFA VQA file.

    The source is `` question?``, cut to ``max_src_length`` words. Answers are
    ``confidence|!+answer`` joined by ``&&``. The target is the answer of the highest confidence,
    the most frequent one in a tie. In training its confidence weights the loss (``conf``), and an
    open answer is cut to ``max_tgt_length`` words. The references are all answers as written, with
    their confidence where it is a score (`answer_references`); rows of test splits may have none.

    With ``trie`` the answers are a closed set. Training answers must be in it. Elsewhere the target
    is the best answer in it; a row without one has a mask that allows everything.

    Args:
        add_object: add the row's predicted objects to the source, at most ``max_object_length``.
    """

    COLUMNS = COLUMNS
    SELECTED_COLS = OFFICIAL_COLS
    SOURCE_FIELD = "question"
    ANSWER_FIELD = "answers"

    def __init__(
        self,
        *arguments: Any,
        add_object: bool = False,
        max_object_length: int = MAX_OBJECTS,
        selected_cols: str | None = None,
        **options: Any,
    ):
        self.add_object, self.max_object_length = add_object, max_object_length
        if add_object:
            selected_cols = selected_cols or OFFICIAL_COLS_WITH_OBJECTS
        super().__init__(*arguments, selected_cols=selected_cols, **options)
        self.check_answers: Callable[[Answers], None] | None = None
        """Raises ValueError for answers that a metric cannot score; not asked in training."""

    @classmethod
    def prompt_texts(cls, options: Any) -> tuple[str, ...]:
        return ("?", object_text("", 0)) if options.add_object else ("?",)

    def columns(self, selected_cols: str | None) -> tuple[str, ...]:
        # OFA's own selection always names the predicted objects.
        has_objects = selected_cols and selected_cols.count(",") == len(COLUMNS)
        return (*COLUMNS, "objects") if self.add_object or has_objects else COLUMNS

    @cached_property
    def lengths(self) -> tuple[int, int]:
        source = self.max_src_length + 3
        if self.add_object:
            source += self.max_object_length + 2
        longest = self.max_tgt_length
        if self.trie is not None:
            longest = max(map(len, self.trie.answers))
        return source, longest + 1 + (source if self.prompt_type != "none" else 0)

    def first_answers(self, rows: int) -> Iterator[tuple[int, Answers]]:
        """Yield the number and the answers of each of the first ``rows`` that has readable ones."""
        for index, fields in self._first_rows(rows):
            try:
                answers = parse_answers(fields["answers"])
            except ValueError:  # raised, or skipped by flag, when the batch is read
                continue
            if answers:
                yield index, answers

    def has_objects(self, rows: int) -> bool:
        """Return whether one of the first ``rows`` has a predicted object."""
        return any(fields["objects"].strip() for _, fields in self._first_rows(rows))

    def _first_rows(self, rows: int) -> Iterator[tuple[int, dict[str, str]]]:
        for index in range(min(rows, len(self))):
            try:
                yield index, self.file.row(index)
            except TsvError:  # raised, or skipped by flag, when the batch is read
                continue

    def read(self, row: Row, unknown: list[str]) -> RowTokens:
        source = self.encode_source(self._question(row), unknown)
        if self.add_object:
            field = row.text("objects") if row["objects"].strip() else ""
            objects = self.encoder.encode(object_text(field, self.max_object_length), unknown)
            source = torch.cat([source[:-1], objects, source[-1:]])  # before eos
        answers = self._answers(row)
        answer, conf = self._target(row, answers, unknown)
        return RowTokens(source, answer, answer_references(answers), conf)

    def mask(self, target: Tensor, prompt_length: int, answer: Tensor) -> Tensor | None:
        if self.trie is not None and answer.tolist() not in self.trie:
            return torch.ones(len(target), len(self.encoder.vocabulary), dtype=torch.bool)
        return super().mask(target, prompt_length, answer)

    def _question(self, row: Row) -> str:
        text = row.text("question")
        question = question_text(text, self.max_src_length)
        if not question:
            raise row.error("question", f"{text!r} has no words", "Fill it in or remove the line")
        return question

    def _answers(self, row: Row) -> Answers:
        try:
            answers = parse_answers(row["answers"])
        except ValueError as error:
            raise row.error(
                "answers",
                f"the answers are malformed ({str(error)[:80]})",
                f"Write CONFIDENCE|!+ANSWER, several joined by &&, or choose the columns of "
                f"{', '.join(COLUMNS)} with --selected-cols",
            ) from None
        wrong = [conf for conf, _ in answers if not 0 < conf <= 1]
        if wrong:
            raise row.error("answers", f"confidence {wrong[0]}", "Give more than 0 and at most 1")
        if self.train and not any(text.strip() for _, text in answers):
            raise row.error("answers", "training data without an answer", "Remove the line")
        if not self.train and self.check_answers is not None:
            try:
                self.check_answers(answers)
            except ValueError as error:
                raise row.error("answers", str(error), "Correct the row") from None
        return answers

    def _target(self, row: Row, answers: Answers, unknown: list[str]) -> tuple[Tensor, float]:
        """Return tokens Long [A] and confidence of the answer to train on; no tokens if none."""
        texts = [(conf, " ".join(text.lower().split())) for conf, text in answers]
        counts = Counter(text for _, text in texts)
        ranked = sorted(texts, key=lambda pair: (-pair[0], -counts[pair[1]]))
        ranked = [(conf, text) for conf, text in ranked if text]
        tokens = {text: self.encoder.encode(f" {text}") for _, text in ranked}
        inside = [(conf, text) for conf, text in ranked if self._is_candidate(tokens[text])]
        if self.train and not inside:
            raise row.error(
                "answers",
                f"{ranked[0][1]!r} is none of the {len(self.trie.answers) if self.trie else 0} "
                "candidate answers",
                "Prepare the training data with the list that --answers names",
            )
        if not ranked:
            return torch.zeros(0, dtype=torch.long), 1.0
        conf, text = (inside or ranked)[0]
        if self.train and self.trie is None:
            text = " ".join(text.split()[: self.max_tgt_length])
        return self.encoder.encode(f" {text}", unknown), conf

    def _is_candidate(self, tokens: Tensor) -> bool:
        return self.trie is None or tokens.tolist() in self.trie

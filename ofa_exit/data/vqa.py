"""Visual question answering rows: an image, a question, and its answers."""

import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ofa_exit.data.answers import parse_answers
from ofa_exit.data.example import (
    PROMPT_TYPES,
    Example,
    answer_sequences,
    check_length,
    read_image,
    read_text,
    source_sequence,
)
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.text import TextEncoder, normalise_sentence
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.tsv import TsvFile

COLUMNS = ("uniq_id", "image", "question", "answers")
# question-id, image-id, question, answers, predicted objects (not read), image
OFFICIAL_COLS = "0,5,2,3"


def read_answers(path: str | os.PathLike, encoder: TextEncoder) -> dict[str, list[int]]:
    """The candidate answers of a text file, one a line, with their tokens (no bos, no eos).

    Raises ValueError, with the line: an empty one, an answer that the dictionary cannot spell, or
    that another has the same tokens as; fewer than two answers.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--answers {path}: the list of answers cannot be read ({error}). Give a text file of "
            "one answer a line, as ofa_exit.prepare writes answers.txt"
        ) from error
    answers: dict[str, list[int]] = {}
    known: dict[tuple[int, ...], str] = {}
    for number, line in enumerate(lines, start=1):
        text = " ".join(line.split())
        where = f"{path}, line {number}"
        unknown: list[str] = []
        tokens = encoder.encode(f" {text}", unknown).tolist() if text else []
        if not tokens:
            raise ValueError(f"{where}: an empty line. Remove it")
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


class QuestionExamples:
    """Examples of an OFA VQA file, by row; raises TsvError for a row that makes none.

    The source is `` question?``, cut to ``max_src_length`` words. Answers are
    ``confidence|!+answer`` joined by ``&&``; the target is the one of the highest confidence, of
    equals the most frequent, and in training the confidence weighs its loss (``conf``). In training
    (``train``) it is cut to ``max_tgt_length`` words where answers are open. The references are all
    answers as written; rows of test splits may have none.

    With ``trie`` the answers are a closed set: each example gets the mask of the tokens allowed.
    Training answers must be in it. Elsewhere the target is the best of those that are; where none
    is, the mask allows everything.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        encoder: TextEncoder,
        load_image: ImageLoader,
        *,
        train: bool,
        selected_cols: str | None = None,
        max_src_length: int = 80,
        max_tgt_length: int = 20,
        prompt_type: str = "none",
        trie: AnswerTrie | None = None,
        max_source_positions: int = 1024,
        max_target_positions: int = 1024,
    ):
        if prompt_type not in PROMPT_TYPES:
            raise ValueError(f"prompt type {prompt_type!r} is none of {', '.join(PROMPT_TYPES)}")
        # OFA's own selection names the predicted objects, too.
        columns: tuple[str, ...] = COLUMNS
        if selected_cols and selected_cols.count(",") == len(COLUMNS):
            columns = (*COLUMNS, "objects")
        self.file = TsvFile(path, selected_cols or OFFICIAL_COLS, columns)
        self.encoder = encoder
        self.load_image = load_image
        self.train = train
        self.max_src_length = max_src_length
        self.max_tgt_length = max_tgt_length
        self.prompt_type = prompt_type
        self.trie = trie
        self.max_source_positions = max_source_positions
        self.max_target_positions = max_target_positions
        # Source and target in tokens, for making batches; a word counts as a token.
        source = max_src_length + 3
        longest = max_tgt_length if trie is None else max(map(len, trie.answers))
        self.lengths = (source, longest + 1 + (source if prompt_type != "none" else 0))

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> Example:
        row = self.file.row(index)
        vocabulary = self.encoder.vocabulary
        uniq_id = read_text(self.file, index, row, "uniq_id")
        unknown: list[str] = []
        question = self._question(index, row)
        source = source_sequence(self.encoder.encode(f" {question}", unknown), vocabulary)
        answers = self._answers(index, row)
        answer, conf = self._target(index, answers, unknown)
        prev_output, target, prompt_length = answer_sequences(
            source, answer, self.prompt_type, vocabulary
        )
        for tokens, field, limit, option in (
            (source, "question", self.max_source_positions, "--max-source-positions"),
            (target, "answers", self.max_target_positions, "--max-target-positions"),
        ):
            check_length(self.file, index, field, tokens, limit, option)
        mask = None
        if self.trie is not None:
            if answer.tolist() in self.trie:
                mask = self.trie.mask(target, prompt_length, len(vocabulary))
            else:
                mask = torch.ones(len(target), len(vocabulary), dtype=torch.bool)
        return Example(
            index=index,
            uniq_id=uniq_id,
            source=source,
            prev_output=prev_output,
            target=target,
            prompt_length=prompt_length,
            image=read_image(self.file, index, row, self.load_image),
            references=[text for _, text in answers],
            unknown=unknown,
            constraint_mask=mask,
            conf=conf,
        )

    def _question(self, index: int, row: dict[str, str]) -> str:
        text = read_text(self.file, index, row, "question")
        words = normalise_sentence(text, self.max_src_length).rstrip("? ")
        if not words:
            raise self.file.error(
                index, "question", f"{text!r} has no words", "Fill it in or remove the line"
            )
        return words + "?"

    def _answers(self, index: int, row: dict[str, str]) -> list[tuple[float, str]]:
        try:
            answers = parse_answers(row["answers"])
        except ValueError as error:
            raise self.file.error(
                index,
                "answers",
                f"the answers are malformed ({str(error)[:80]})",
                f"Write CONFIDENCE|!+ANSWER, several joined by &&, or choose the columns of "
                f"{', '.join(COLUMNS)} with --selected-cols",
            ) from None
        wrong = [conf for conf, _ in answers if not 0 < conf <= 1]
        if wrong:
            raise self.file.error(
                index, "answers", f"confidence {wrong[0]}", "Give more than 0 and at most 1"
            )
        if self.train and not any(text.strip() for _, text in answers):
            raise self.file.error(
                index, "answers", "training data without an answer", "Remove the line"
            )
        return answers

    def _target(
        self, index: int, answers: list[tuple[float, str]], unknown: list[str]
    ) -> tuple[Tensor, float]:
        """Tokens and confidence of the answer that the loss asks for; none is eos alone."""
        texts = [(conf, " ".join(text.lower().split())) for conf, text in answers]
        counts = Counter(text for _, text in texts)
        best = sorted(texts, key=lambda one: (-one[0], -counts[one[1]]))
        tokens = {text: self.encoder.encode(f" {text}") for _, text in best if text}
        inside = [one for one in best if one[1] and self._is_candidate(tokens[one[1]])]
        if self.train and not inside:
            raise self.file.error(
                index,
                "answers",
                f"{best[0][1]!r} is none of the {len(self.trie.answers) if self.trie else 0} "
                "candidate answers",
                "Prepare the training data with the list that --answers names",
            )
        conf, text = next(iter([*inside, *(one for one in best if one[1])]), (1.0, ""))
        if not text:
            return torch.zeros(0, dtype=torch.long), conf
        if self.train and self.trie is None:
            text = " ".join(text.split()[: self.max_tgt_length])
        return self.encoder.encode(f" {text}", unknown), conf

    def _is_candidate(self, tokens: Tensor) -> bool:
        return self.trie is None or tokens.tolist() in self.trie

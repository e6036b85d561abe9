"""Visual dialogue rows: an image, the dialogue so far, a question, and candidate answers."""

import math
import os

from torch import Tensor

from ofa_exit.data.example import (
    IMAGE_FIELD,
    Example,
    answer_sequences,
    check_length,
    read_image,
    read_text,
    source_sequence,
)
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.text import TextEncoder
from ofa_exit.data.tsv import TsvFile

COLUMNS = ("uniq_id", "image", "history", "question", "answers", "gt_index", "relevance")
# question-id, image-id, history, question, answers, gt_index, relevance, image
PREPARED_COLS = "0,7,2,3,4,5,6"
SEPARATOR = "&&"


class DialogExamples:
    """Examples of a VisDial file, by row; raises TsvError for a row that makes none.

    The source is `` history question?`` in lower case, of which the last ``max_src_length`` words
    are kept: what was said first is forgotten first. ``candidates`` are the answers in their
    order, whole; the target is the true one, and only in training (``train``) cut to
    ``max_tgt_length`` words. References are the true one's number and the candidates' relevances,
    as the scorer ``visdial`` reads them; a row of a test split has none, and no target but eos.
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
        max_source_positions: int = 1024,
        max_target_positions: int = 1024,
    ):
        self.file = TsvFile(path, selected_cols or PREPARED_COLS, COLUMNS)
        self.encoder = encoder
        self.load_image = load_image
        self.train = train
        self.max_src_length = max_src_length
        self.max_tgt_length = max_tgt_length
        self.max_source_positions = max_source_positions
        self.max_target_positions = max_target_positions
        self._last: tuple[str, Tensor | None] | None = None
        # Source and target in tokens, for making batches; a word counts as a token.
        self.lengths = (max_src_length + 2, max_tgt_length + 1)

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> Example:
        row = self.file.row(index)
        uniq_id = read_text(self.file, index, row, "uniq_id")
        history, question = (
            read_text(self.file, index, row, field) for field in ("history", "question")
        )
        words = f"{history} {question}".lower().split()[-self.max_src_length :]
        unknown: list[str] = []
        vocabulary = self.encoder.vocabulary
        source = source_sequence(self.encoder.encode(" " + " ".join(words), unknown), vocabulary)
        texts = self._candidates(index, row)
        true = self._true_index(index, row, len(texts))
        candidates = [self.encoder.encode(f" {text}", unknown) for text in texts]
        answer = source[:0]
        if true is not None:
            answer = candidates[true]
            if self.train:
                cut = " ".join(texts[true].split()[: self.max_tgt_length])
                answer = self.encoder.encode(f" {cut}")
        prev_output, target, prompt_length = answer_sequences(source, answer, "none", vocabulary)
        for tokens, field, limit, option in (
            (source, "history", self.max_source_positions, "--max-source-positions"),
            (target, "answers", self.max_target_positions, "--max-target-positions"),
            *(
                # Fed are bos and all tokens, and one more is asked for.
                (tokens, "answers", self.max_target_positions - 1, "--max-target-positions")
                for tokens in candidates
            ),
        ):
            check_length(self.file, index, field, tokens, limit, option)
        return Example(
            index=index,
            uniq_id=uniq_id,
            source=source,
            prev_output=prev_output,
            target=target,
            prompt_length=prompt_length,
            image=self._image(index, row),
            references=self._references(index, row, true, len(texts)),
            unknown=unknown,
            candidates=None if self.train else [tokens.tolist() for tokens in candidates],
        )

    def _image(self, index: int, row: dict[str, str]) -> Tensor | None:
        """The picture; rounds of one dialogue, which stand together, get the same tensor."""
        if self.train:  # in any order, and batch norm counts each row
            return read_image(self.file, index, row, self.load_image)
        if self._last is None or self._last[0] != row[IMAGE_FIELD]:
            image = read_image(self.file, index, row, self.load_image)
            self._last = row[IMAGE_FIELD], image
        return self._last[1]

    def _candidates(self, index: int, row: dict[str, str]) -> list[str]:
        text = read_text(self.file, index, row, "answers")
        texts = [" ".join(part.lower().split()) for part in text.split(SEPARATOR)]
        for number, candidate in enumerate(texts):
            if not candidate or not len(self.encoder.encode(f" {candidate}")):
                raise self.file.error(
                    index,
                    "answers",
                    f"candidate {number} (counted from 0) of {len(texts)} is empty",
                    "Fill it in",
                )
        return texts

    def _true_index(self, index: int, row: dict[str, str], count: int) -> int | None:
        text = row["gt_index"].strip()
        if not text and not self.train:
            return None
        if not (text.isascii() and text.isdecimal() and int(text) < count):
            raise self.file.error(
                index,
                "gt_index",
                f"{text!r} is the number of none of the {count} candidates, counted from 0",
                "Prepare the data again, or check --selected-cols",
            )
        return int(text)

    def _references(
        self, index: int, row: dict[str, str], true: int | None, count: int
    ) -> list[str]:
        if true is None:
            return []
        relevance = [part.strip() for part in row["relevance"].split(SEPARATOR) if part.strip()]
        try:
            values = [float(value) for value in relevance]
        except ValueError:
            values = [-1.0]
        message = ""
        if values and not (len(values) == count and all(0 <= v < math.inf for v in values)):
            message = f"not {count} numbers of at least 0 joined by {SEPARATOR}, one a candidate"
        elif values and not any(values):
            message = "0 for every candidate, of which NDCG is not defined"
        if message:
            remedy = "Prepare the data again, or leave the field empty"
            raise self.file.error(index, "relevance", message, remedy)
        return [str(true), *relevance]

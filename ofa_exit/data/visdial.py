"""Visual dialogue rows: an image, the dialogue so far, a question, and candidate answers."""

import math
from functools import cached_property
from typing import Any

from torch import Tensor

from ofa_exit.data.formats import SEPARATOR
from ofa_exit.data.row_examples import IMAGE_FIELD, Row, RowExamples, RowTokens

COLUMNS = ("uniq_id", "image", "history", "question", "answers", "gt_index", "relevance")
# question-id, image-id, history, question, answers, gt_index, relevance, image
PREPARED_COLS = "0,7,2,3,4,5,6"


class DialogExamples(RowExamples):
    """Examples of a VisDial file.

    The source is `` history question?`` in lower case, of which the last ``max_src_length`` words
    are kept: the beginning of the dialogue is dropped first. ``candidates`` are the answers in
    their order, uncut. The target is the true answer, in training cut to ``max_tgt_length`` words.
    References are the true answer's number and the candidates' relevances, as the scorer
    ``visdial`` reads them. A row of a test split has no reference, and its target is eos alone.
    """

    COLUMNS = COLUMNS
    SELECTED_COLS = PREPARED_COLS
    SOURCE_FIELD = "history"
    ANSWER_FIELD = "answers"

    def __init__(self, *arguments: Any, needs_truth: bool = False, **options: Any):
        super().__init__(*arguments, **options)
        self.needs_truth = needs_truth or self.train
        # Image field, image and number of the last row whose image was decoded.
        self._last: tuple[str, Tensor | None, int] | None = None

    @cached_property
    def lengths(self) -> tuple[int, int]:
        return self.max_src_length + 2, self.max_tgt_length + 1

    def read(self, row: Row, unknown: list[str]) -> RowTokens:
        words = f"{row.text('history')} {row.text('question')}".lower().split()
        source = self.encode_source(" " + " ".join(words[-self.max_src_length :]), unknown)
        texts = self._candidates(row)
        true = self._true_index(row, len(texts))
        candidates = [self.encoder.encode(f" {text}", unknown) for text in texts]
        answer = source[:0]
        if true is not None:
            answer = candidates[true]
            if self.train:
                cut = " ".join(texts[true].split()[: self.max_tgt_length])
                answer = self.encoder.encode(f" {cut}")
        references = self._references(row, true, len(texts))
        return RowTokens(source, answer, references, candidates=None if self.train else candidates)

    def image(self, row: Row) -> tuple[Tensor | None, int | None]:
        """Decode the image of consecutive rounds once; their ``image_id`` is the first's index.

        Training rows come in any order, and batch norm counts each of them: they share none, unless
        ``groups`` says so.
        """
        if self.train:
            return super().image(row)
        if self._last is None or self._last[0] != row[IMAGE_FIELD]:
            self._last = row[IMAGE_FIELD], row.image(self.load_image), row.index
        return self._last[1:]

    def _candidates(self, row: Row) -> list[str]:
        parts = row.text("answers").split(SEPARATOR)
        texts = [" ".join(part.lower().split()) for part in parts]
        for number, candidate in enumerate(texts):
            if not candidate or not len(self.encoder.encode(f" {candidate}")):
                raise row.error(
                    "answers",
                    f"candidate {number} (counted from 0) of {len(texts)} is empty",
                    "Fill it in",
                )
        return texts

    def _true_index(self, row: Row, count: int) -> int | None:
        text = row["gt_index"].strip()
        if not text and not self.needs_truth:
            return None
        if not (text.isascii() and text.isdecimal() and int(text) < count):
            raise row.error(
                "gt_index",
                f"{text!r} is not the number of one of the {count} candidates, counted from 0",
                "Prepare the data again, or check --selected-cols",
            )
        return int(text)

    def _references(self, row: Row, true: int | None, count: int) -> list[str]:
        if true is None:
            return []
        relevance = [part.strip() for part in row["relevance"].split(SEPARATOR) if part.strip()]
        try:
            values = [float(value) for value in relevance]
        except ValueError:
            values = [-1.0]
        message = ""
        if values and not (len(values) == count and all(0 <= v < math.inf for v in values)):
            message = f"not {count} numbers of at least 0 joined by {SEPARATOR}, one per candidate"
        elif values and not any(values):
            message = "0 for every candidate, for which NDCG is undefined"
        if message:
            raise row.error("relevance", message, "Prepare the data again, or leave it empty")
        return [str(true), *relevance]

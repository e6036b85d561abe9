"""Base class of the data sets: rows of a TSV file as examples, and the checks that all share."""

import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from ofa_exit.data.augment import Augmentation
from ofa_exit.data.example import Example, answer_sequences, source_prompt
from ofa_exit.data.images import ImageError, ImageLoader, looks_like_image
from ofa_exit.data.text import TextEncoder
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.tsv import TsvError, TsvFile

IMAGE_FIELD = "image"


class Row:
    """The selected fields of a row, with errors that name file, line and field."""

    def __init__(self, file: TsvFile, index: int):
        self.file = file
        self.index = index
        self._fields = file.row(index)

    def __getitem__(self, field: str) -> str:
        return self._fields[field]

    def error(self, field: str, message: str, remedy: str) -> TsvError:
        """Return the error to raise about ``field``."""
        return self.file.error(self.index, field, message, remedy)

    def text(self, field: str) -> str:
        """Return the text of ``field`` with single spaces. Raises TsvError: empty, or an image."""
        text = self[field]
        if looks_like_image(text):
            raise self.error(
                field,
                f"column {self.file.column_of(field)} holds an image, not text",
                f"Choose the columns of {', '.join(self.file.columns)} with --selected-cols",
            )
        text = " ".join(text.split())
        if not text:
            raise self.error(field, "the field is empty", "Fill it in or remove the line")
        return text

    def image(self, load_image: ImageLoader) -> Tensor | None:
        """Return the image, or None where the field is empty and no other column holds one.

        Raises TsvError, which names a likelier column where there is one.
        """
        message, remedy = "the field is empty", ""
        try:
            image = load_image(self[IMAGE_FIELD], self.file.path.parent)
        except ImageError as error:
            image, message, remedy = None, error.message, error.remedy
        if image is not None:
            return image
        fields = self.file.fields(self.index)
        others = [column for column, field in enumerate(fields) if looks_like_image(field)]
        if others and not looks_like_image(self[IMAGE_FIELD]):
            remedy = (
                f"Column {self.file.column_of(IMAGE_FIELD)} was read; column {others[0]} looks "
                f"like an image: choose the columns of {', '.join(self.file.columns)} with "
                "--selected-cols"
            )
        if remedy:
            raise self.error(IMAGE_FIELD, message, remedy)
        return None


@dataclass
class RowTokens:
    """What a data set reads from a row; `RowExamples` turns it into an example.

    Args:
        source: Long [T], with bos and eos.
        answer: Long [A], the answer to train on, without bos and eos.
        references: the row's texts as they are in the file.
        conf: weight of the row in the loss.
        candidates: Long [C] each, the row's own answers to choose from, without eos.
    """

    source: Tensor
    answer: Tensor
    references: list[str]
    conf: float | None = None
    candidates: list[Tensor] | None = None


class RowExamples:
    """Base class of the data sets: examples of a TSV file by row number.

    A data set defines `read`, `lengths` and

    - COLUMNS, the names of the columns that it reads;
    - SELECTED_COLS, their numbers in the published files;
    - SOURCE_FIELD and ANSWER_FIELD, the columns to name if source or target are too long.

    It may also override `prompt_texts`, `columns`, `prompt`, `image` and `mask`.

    Args:
        load_image: turns the image field into Float [3, H, W].
        train: rows are for training. Data sets then cut targets, or demand an answer.
        selected_cols: numbers of the columns, as in "0,4,2". None: the published layout.
        max_src_length, max_tgt_length: words to keep of source texts and of targets.
        prompt_type: what the decoder is fed before the answer, see `source_prompt`.
        trie: the closed set of answers; examples then have a ``constraint_mask``.
        augment: changes the images, for training.
        groups: the image of each row, Long [N]: rows with the same number share it, and its view.
            None: every row has an image of its own.
        references_optional: rows to generate for, which need no caption or label. Without it those
            of a captioning or entailment file need one. (Questions and dialogues need none outside
            training.)
        max_source_positions, max_target_positions: the model's limits. A row beyond them raises.
    """

    COLUMNS: ClassVar[tuple[str, ...]]
    SELECTED_COLS: ClassVar[str]
    SOURCE_FIELD: ClassVar[str]
    ANSWER_FIELD: ClassVar[str]

    def __init__(
        self,
        path: str | os.PathLike,
        encoder: TextEncoder,
        load_image: ImageLoader,
        *,
        train: bool = False,
        selected_cols: str | None = None,
        max_src_length: int = 80,
        max_tgt_length: int = 20,
        prompt_type: str = "none",
        trie: AnswerTrie | None = None,
        augment: Augmentation | None = None,
        groups: Tensor | None = None,
        references_optional: bool = False,
        max_source_positions: int = 1024,
        max_target_positions: int = 1024,
    ):
        self.file = TsvFile(path, selected_cols or self.SELECTED_COLS, self.columns(selected_cols))
        self.encoder = encoder
        self.load_image = load_image
        self.train = train
        self.max_src_length = max_src_length
        self.max_tgt_length = max_tgt_length
        self.prompt_type = prompt_type
        self.trie = trie
        self.augment = augment
        self.groups = groups
        self._decoded: Any = None  # the shared image that was decoded last
        self.references_optional = references_optional
        self.max_source_positions = max_source_positions
        self.max_target_positions = max_target_positions

    @classmethod
    def prompt_texts(cls, options: Any) -> tuple[str, ...]:
        """Return what the data set adds to the texts of every row.

        Args:
            options: has the task's ``add_caption`` (entailment) and ``add_object`` (questions).
        """
        return ()

    def columns(self, selected_cols: str | None) -> tuple[str, ...]:
        """Return the names of the columns that ``selected_cols`` chooses."""
        return self.COLUMNS

    @cached_property
    def lengths(self) -> tuple[int, int]:
        """Estimate the tokens of source and target, one per word, without reading a row."""
        raise NotImplementedError

    def read(self, row: Row, unknown: list[str]) -> RowTokens:
        """Return the texts of ``row`` as tokens. Append symbols that became unk to ``unknown``."""
        raise NotImplementedError

    def prompt(self, source: Tensor) -> Tensor:
        """Return what the decoder is fed before the answer, Long [P], bos first."""
        return source_prompt(source, self.prompt_type)

    def image(self, row: Row) -> tuple[Tensor | None, int | None]:
        """Return the image and its ``image_id``."""
        view, image_id = row.index, None
        if self.groups is None:
            image = row.image(self.load_image)
        else:
            view = image_id = int(self.groups[row.index])
            if self._decoded is None or self._decoded[0] != image_id:
                self._decoded = image_id, row.image(self.load_image)
            image = self._decoded[1]
        if image is not None and self.augment is not None:
            image = self.augment(image, view)
        return image, image_id

    def mask(self, target: Tensor, prompt_length: int, answer: Tensor) -> Tensor | None:
        """Return the constraint mask, Bool [L, V]."""
        if self.trie is None:
            return None
        return self.trie.mask(target, prompt_length, len(self.encoder.vocabulary))

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> Example:
        """Return the example of row ``index``. Raises TsvError for a row that makes none."""
        row = Row(self.file, index)
        uniq_id = row.text("uniq_id")
        unknown: list[str] = []
        tokens = self.read(row, unknown)
        prev_output, target, prompt_length = answer_sequences(
            self.prompt(tokens.source), tokens.answer, self.encoder.vocabulary
        )
        candidates = tokens.candidates
        for sequence, field, limit, option in (
            (tokens.source, self.SOURCE_FIELD, self.max_source_positions, "source"),
            (target, self.ANSWER_FIELD, self.max_target_positions, "target"),
            # The decoder is fed bos and all tokens of a candidate, then asked for eos.
            *(
                (candidate, self.ANSWER_FIELD, self.max_target_positions - 1, "target")
                for candidate in candidates or ()
            ),
        ):
            if len(sequence) > limit:
                raise row.error(
                    field,
                    f"the row makes {len(sequence)} tokens, more than the {limit} positions of "
                    "the model",
                    f"Shorten the text or raise --max-{option}-positions",
                )
        image, image_id = self.image(row)
        return Example(
            index=index,
            uniq_id=uniq_id,
            source=tokens.source,
            prev_output=prev_output,
            target=target,
            prompt_length=prompt_length,
            image=image,
            references=tokens.references,
            unknown=unknown,
            constraint_mask=self.mask(target, prompt_length, tokens.answer),
            conf=tokens.conf,
            candidates=None if candidates is None else [each.tolist() for each in candidates],
            image_id=image_id,
            image_key=zlib.crc32((row[IMAGE_FIELD] or str(index)).encode()),
        )

    def encode_source(self, text: str, unknown: list[str]) -> Tensor:
        """Return bos, the tokens of ``text``, eos: Long [T]."""
        return self.encoder.encode_source(text, unknown)

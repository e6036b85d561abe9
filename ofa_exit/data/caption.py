"""Captioning rows: an image and its captions."""

import os

from ofa_exit.data.example import (
    Example,
    answer_sequences,
    check_length,
    read_image,
    read_text,
    source_sequence,
)
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.text import TextEncoder, strip_punctuation
from ofa_exit.data.tsv import TsvFile

COLUMNS = ("uniq_id", "image", "caption")
# uniq-id, image-id, caption, predicted objects, image
OFFICIAL_COLS = "0,4,2"
PROMPT = " what does the image describe?"
SEPARATOR = "&&"


class CaptionExamples:
    """Examples of an OFA captioning file, by row; raises TsvError for a row that makes none.

    The source is OFA's fixed question, the target `` caption`` without punctuation. In training
    (``train``) a row has one caption, cut to ``max_tgt_length`` words. Otherwise it has one or
    several joined by ``&&``, uncut: all are references, the first is the target. With
    ``all_references`` training rows, too, may have several.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        encoder: TextEncoder,
        load_image: ImageLoader,
        *,
        train: bool,
        all_references: bool = False,
        selected_cols: str | None = None,
        max_tgt_length: int = 20,
        max_source_positions: int = 1024,
        max_target_positions: int = 1024,
    ):
        if max_tgt_length < 1:
            raise ValueError(f"max_tgt_length {max_tgt_length} is not positive")
        self.file = TsvFile(path, selected_cols or OFFICIAL_COLS, COLUMNS)
        self.encoder = encoder
        self.load_image = load_image
        self.train = train
        self.one_caption = train and not all_references
        self.max_tgt_length = max_tgt_length
        self.max_target_positions = max_target_positions
        self._unknown_in_prompt: list[str] = []
        self.source = source_sequence(
            encoder.encode(PROMPT, self._unknown_in_prompt), encoder.vocabulary
        )
        if len(self.source) > max_source_positions:
            raise ValueError(
                f"the prompt makes {len(self.source)} tokens, more than the model's "
                f"{max_source_positions} positions: raise --max-source-positions"
            )
        # Source and target in tokens, for making batches; a word counts as a token.
        self.lengths = (len(self.source), max_tgt_length + 1)

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> Example:
        row = self.file.row(index)
        uniq_id = read_text(self.file, index, row, "uniq_id")
        references = self._references(index, row)
        words = strip_punctuation(references[0]).split()
        if self.train:
            words = words[: self.max_tgt_length]
        unknown = list(self._unknown_in_prompt)
        answer = self.encoder.encode(" " + " ".join(words), unknown)
        prev_output, target, prompt_length = answer_sequences(
            self.source, answer, "none", self.encoder.vocabulary
        )
        check_length(
            self.file, index, "caption", target, self.max_target_positions, "--max-target-positions"
        )
        return Example(
            index=index,
            uniq_id=uniq_id,
            source=self.source,
            prev_output=prev_output,
            target=target,
            prompt_length=prompt_length,
            image=read_image(self.file, index, row, self.load_image),
            references=references,
            unknown=unknown,
        )

    def _references(self, index: int, row: dict[str, str]) -> list[str]:
        text = read_text(self.file, index, row, "caption")
        captions = [part.strip() for part in text.split(SEPARATOR)]
        if self.one_caption and len(captions) > 1:
            # Without its punctuation the row would be one caption with two words grown together.
            raise self.file.error(
                index,
                "caption",
                f"{len(captions)} captions joined by {SEPARATOR} in training data",
                "Give each caption a line of its own (only --criterion mue_scst trains on such "
                "rows), or check --selected-cols",
            )
        for number, caption in enumerate(captions, start=1):
            if not strip_punctuation(caption):
                raise self.file.error(
                    index,
                    "caption",
                    f"caption {number} of {len(captions)} has no words",
                    "Fill it in or remove it",
                )
        return captions

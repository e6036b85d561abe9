"""Visual entailment rows: does an image (and a premise) entail a hypothesis?"""

import os

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

COLUMNS = ("uniq_id", "image", "hypothesis", "premise", "label")
# uniq-id, image-id, image, hypothesis, caption (the premise), label
OFFICIAL_COLS = "0,2,3,4,5"
ANSWER_WORDS = ("yes", "maybe", "no")
_LABELS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
_LABELS.update({word: word for word in ANSWER_WORDS})


def answer_tokens(encoder: TextEncoder) -> dict[str, list[int]]:
    """Tokens of each answer word, no bos, no eos. Raises ValueError if the dictionary lacks one."""
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


class EntailmentExamples:
    """Examples of an OFA SNLI-VE file, by row; raises TsvError for a row that makes none.

    The source is `` does the image describe " H "?``, or with ``add_caption``
    `` can image and text1 " P " imply text2 " H "?``; H and P are cut to ``max_src_length`` words.
    Labels are entailment, neutral, contradiction, or yes, maybe, no, as which they are answered.
    ``prompt_type`` is what the decoder is fed before the answer (see ``answer_sequences``);
    ``trie`` gives each example the mask of the answer tokens allowed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        encoder: TextEncoder,
        load_image: ImageLoader,
        *,
        selected_cols: str | None = None,
        max_src_length: int = 80,
        add_caption: bool = False,
        prompt_type: str = "none",
        trie: AnswerTrie | None = None,
        max_source_positions: int = 1024,
        max_target_positions: int = 1024,
    ):
        if prompt_type not in PROMPT_TYPES:
            raise ValueError(f"prompt type {prompt_type!r} is none of {', '.join(PROMPT_TYPES)}")
        if max_src_length < 1:
            raise ValueError(f"max_src_length {max_src_length} is not positive")
        self.file = TsvFile(path, selected_cols or OFFICIAL_COLS, COLUMNS)
        self.encoder = encoder
        self.load_image = load_image
        self.max_src_length = max_src_length
        self.add_caption = add_caption
        self.prompt_type = prompt_type
        self.trie = trie
        self.max_source_positions = max_source_positions
        self.max_target_positions = max_target_positions
        self.answers = answer_tokens(encoder)
        # Source and target in tokens, for making batches; a word counts as a token.
        source = len(encoder.encode(self._source_text("", ""))) + 2
        source += max_src_length * (1 + add_caption)
        answer = max(map(len, self.answers.values())) + 1
        self.lengths = (source, answer + (source if prompt_type != "none" else 0))

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> Example:
        row = self.file.row(index)
        vocabulary = self.encoder.vocabulary
        uniq_id = read_text(self.file, index, row, "uniq_id")
        word = self._answer_word(index, row)
        hypothesis = self._sentence(index, row, "hypothesis")
        premise = self._sentence(index, row, "premise") if self.add_caption else ""
        unknown: list[str] = []
        source = source_sequence(
            self.encoder.encode(self._source_text(hypothesis, premise), unknown), vocabulary
        )
        answer = source.new_tensor(self.answers[word])
        prev_output, target, prompt_length = answer_sequences(
            source, answer, self.prompt_type, vocabulary
        )
        for tokens, limit, option in (
            (source, self.max_source_positions, "--max-source-positions"),
            (target, self.max_target_positions, "--max-target-positions"),
        ):
            check_length(self.file, index, "hypothesis", tokens, limit, option)
        mask = None
        if self.trie is not None:
            mask = self.trie.mask(target, prompt_length, len(vocabulary))
        return Example(
            index=index,
            uniq_id=uniq_id,
            source=source,
            prev_output=prev_output,
            target=target,
            prompt_length=prompt_length,
            image=read_image(self.file, index, row, self.load_image),
            references=[word],
            unknown=unknown,
            constraint_mask=mask,
        )

    def _source_text(self, hypothesis: str, premise: str) -> str:
        if self.add_caption:
            return f' can image and text1 " {premise} " imply text2 " {hypothesis} "?'
        return f' does the image describe " {hypothesis} "?'

    def _sentence(self, index: int, row: dict[str, str], field: str) -> str:
        text = normalise_sentence(read_text(self.file, index, row, field), self.max_src_length)
        if not text:
            raise self.file.error(
                index, field, f"{row[field]!r} has no words", "Fill it in or remove the line"
            )
        return text

    def _answer_word(self, index: int, row: dict[str, str]) -> str:
        label = read_text(self.file, index, row, "label")
        if label.lower() in _LABELS:
            return _LABELS[label.lower()]
        shown = label if len(label) <= 40 else label[:40] + "…"
        fields = self.file.fields(index)
        others = [at for at, field in enumerate(fields) if field.strip().lower() in _LABELS]
        remedy = f"Labels are {', '.join(_LABELS)}"
        if others:
            remedy += (
                f"; column {self.file.column_of('label')} was read and column {others[0]} looks "
                f"like a label: choose the columns of {', '.join(COLUMNS)} with --selected-cols"
            )
        raise self.file.error(index, "label", f"unknown label {shown!r}", remedy)

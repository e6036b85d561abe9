"""Make dict.txt: the words of a data set in the form in which fairseq reads them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from types import SimpleNamespace

from ofa_exit.data.caption import CaptionExamples
from ofa_exit.data.row_examples import Row, RowExamples
from ofa_exit.data.snli_ve import EntailmentExamples, parse_labels
from ofa_exit.data.text import TextEncoder, WordCodec, strip_punctuation
from ofa_exit.data.tsv import TsvError
from ofa_exit.data.vqa import QuestionExamples
from ofa_exit.regular_files import regular_file

RESERVED = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def is_reserved(symbol: str) -> bool:
    """Return whether fairseq or OFA adds the symbol itself, so that dict.txt may not have it."""
    return symbol in RESERVED or symbol.startswith(("<code_", "<bin_", "#fairseq:"))


class CountingVocabulary:
    """A vocabulary that knows every symbol, and counts how often it is asked for each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}

    def bos(self) -> int:
        return 0

    def pad(self) -> int:
        return 1

    def eos(self) -> int:
        return 2

    def unk(self) -> int:
        return 3

    def index(self, sym: str) -> int:
        if is_reserved(sym):
            return self.unk()
        self.counts[sym] += 1
        return self._numbers.setdefault(sym, 4 + len(self._numbers))

    def __len__(self) -> int:
        return 4 + len(self._numbers)


def required_symbols(labels: str | None = None) -> list[str]:
    """Return the symbols that no dictionary may lack: of all prompts, answers and separators.

    Args:
        labels: labels of an entailment file, beside OFA's.
    """
    texts: list[str] = []
    for examples in (CaptionExamples, EntailmentExamples, QuestionExamples):
        for adds in (False, True):
            texts += examples.prompt_texts(SimpleNamespace(add_caption=adds, add_object=adds))
    answers = {**parse_labels(None), **parse_labels(labels)}.values()
    return WordCodec().encode(" ".join([*texts, *answers, '? " &&'])).split()


def count_rows(examples: RowExamples, rows: Iterable[int]) -> list[TsvError]:
    """Read the texts of ``rows`` with a `CountingVocabulary`; return the errors of the bad ones."""
    errors = []
    for index in rows:
        try:
            tokens = examples.read(Row(examples.file, index), [])
        except TsvError as error:
            errors.append(error)
            continue
        if isinstance(examples, CaptionExamples):  # the first caption has been read
            for caption in tokens.references[1:]:
                examples.encoder.encode(strip_punctuation(caption))
    return errors


def counting_encoder() -> tuple[TextEncoder, CountingVocabulary]:
    """Return an encoder of words, and the vocabulary that counts them."""
    vocabulary = CountingVocabulary()
    return TextEncoder(WordCodec(), vocabulary), vocabulary


def read_dictionary(path: str | os.PathLike) -> list[str]:
    """Return the lines of a dict.txt, SYMBOL COUNT. Raises ValueError for other lines."""
    try:
        lines = regular_file(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}). Give a dict.txt") from error
    for number, line in enumerate(lines, start=1):
        symbol, space, count = line.rstrip().rpartition(" ")
        if not symbol or not space or not (count.isascii() and count.isdecimal()):
            raise ValueError(
                f"{path}:{number}: {line[:40]!r} is not SYMBOL COUNT. Give a dict.txt, as "
                "fairseq writes it"
            )
    if not lines:
        raise ValueError(f"{path} is empty. Give a dict.txt")
    return lines


def dictionary_lines(
    counts: Mapping[str, int], required: Iterable[str], first: Iterable[str] = ()
) -> list[str]:
    """Return the lines of dict.txt, SYMBOL COUNT: ``first``, then new symbols, frequent ones first.

    Args:
        counts: how often each symbol occurs.
        required: symbols that may not be missing, whatever their count.
        first: lines of another dictionary, which keep their order: the symbols of a checkpoint keep
            their numbers.
    """
    lines = list(first)
    known = {line.rstrip().rpartition(" ")[0] for line in lines}
    new = Counter(dict.fromkeys(required, 1)) | Counter(counts)
    ordered = sorted(new.items(), key=lambda item: (-item[1], item[0]))
    return lines + [f"{symbol} {count}" for symbol, count in ordered if symbol not in known]

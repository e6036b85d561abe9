"""Text as OFA prepares it, and the codecs that split it into the symbols of a dictionary."""

import os
import re
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ofa_exit.regular_files import IrregularFileError, regular_file

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OWN_SYMBOLS = re.compile(r'(&&|[?"])')


def strip_punctuation(text: str) -> str:
    """Return a caption as OFA trains on it: no ASCII punctuation, case kept, single spaces."""
    return " ".join(text.translate(_PUNCTUATION).split())


def normalise_sentence(text: str, max_words: int | None = None) -> str:
    """Return a hypothesis, premise or question as OFA reads it, cut to ``max_words``.

    The text is lower-cased and loses leading ,.!?*#:;~ characters; - and / become spaces, and
    <person> becomes person.
    """
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ")
    text = text.replace("<person>", "person")
    return " ".join(text.split()[:max_words])


class TextCodec(Protocol):
    """Text to symbols separated by spaces, and back: fairseq's ``bpe``."""

    def encode(self, text: str) -> str: ...

    def decode(self, symbols: str) -> str: ...


class WordCodec:
    """Lower-cased words between spaces; ``?``, ``"`` and ``&&`` are separate symbols."""

    def encode(self, text: str) -> str:
        return " ".join(_OWN_SYMBOLS.sub(r" \1 ", text.lower()).split())

    def decode(self, symbols: str) -> str:
        return " ".join(symbols.split())


class Gpt2Codec:
    """GPT-2's byte-level BPE; a symbol is an id written as text.

    Args:
        get_encoder: makes the encoder from ``encoder_json`` and ``vocab_bpe``: fairseq's own
            function, passed in because this package does not import fairseq.
    """

    def __init__(self, get_encoder: Callable[[str, str], Any], encoder_json: str, vocab_bpe: str):
        self._recipe = (get_encoder, encoder_json, vocab_bpe)
        try:
            self._encoder = get_encoder(encoder_json, vocab_bpe)
        except ValueError as error:
            raise ValueError(
                f"{encoder_json}, {vocab_bpe}: not GPT-2's BPE files ({error}). Download them again"
            ) from error

    def __reduce__(self) -> tuple:
        # fairseq's encoder holds a module, which cannot be pickled.
        return Gpt2Codec, self._recipe

    def encode(self, text: str) -> str:
        return " ".join(map(str, self._encoder.encode(text)))

    def decode(self, symbols: str) -> str:
        """Decode ids. Other symbols (<unk>, <code_3>) are kept as they are, after a space."""
        pieces: list[str] = []
        ids: list[int] = []
        for symbol in symbols.split():
            if symbol.isdecimal():
                ids.append(int(symbol))
                continue
            pieces += [self._encoder.decode(ids), " " + symbol]
            ids = []
        return "".join([*pieces, self._encoder.decode(ids)])


class SentencePieceCodec:
    """The pieces of a sentencepiece model."""

    def __init__(self, model: str):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ImportError(
                f"{model} needs sentencepiece, which is missing: pip install sentencepiece"
            ) from None
        self._processor = SentencePieceProcessor(model_file=model)

    def encode(self, text: str) -> str:
        return " ".join(self._processor.encode(text, out_type=str))

    def decode(self, symbols: str) -> str:
        return symbols.replace(" ", "").replace("\u2581", " ").strip()


def load_codec(directory: str | os.PathLike, gpt2_encoder: Callable[[str, str], Any]) -> TextCodec:
    """Return the codec whose files are in ``directory``.

    encoder.json and vocab.bpe mean GPT-2 BPE, made by ``gpt2_encoder`` (see `Gpt2Codec`); one
    *.model means sentencepiece; without either, symbols are words.

    Raises:
        FileNotFoundError: one of GPT-2's two files is missing.
        ValueError: there are files of several codecs, or of one that is not supported.
    """
    directory = Path(directory)
    bpe = [directory / "encoder.json", directory / "vocab.bpe"]
    missing = [file.name for file in bpe if not file.is_file()]
    if len(missing) == 1:
        raise FileNotFoundError(f"{directory}: GPT-2 BPE lacks {missing[0]}. Add it to the folder")
    if len(missing) == 2 and _has_bert_words(directory / "vocab.txt"):
        raise ValueError(
            f"{directory}/vocab.txt: BERT's words (Chinese OFA, --bpe bert) are not supported. "
            "Give a folder of GPT-2's BPE by --bpe-dir"
        )
    models = sorted(directory.glob("*.model"))
    if len(models) + (not missing) > 1:
        names = [*(file.name for file in bpe if not missing), *(file.name for file in models)]
        raise ValueError(f"{directory}: {', '.join(names)} are several codecs. Keep one")
    if not missing:
        return Gpt2Codec(gpt2_encoder, str(bpe[0]), str(bpe[1]))
    return SentencePieceCodec(str(models[0])) if models else WordCodec()


OFFICIAL_FOLDER = "OFA's checkpoints need the folder utils/BPE of https://github.com/OFA-Sys/OFA"


def _has_bert_words(path: Path) -> bool:
    """Return whether a file lists BERT's vocabulary, which has the word [CLS]."""
    return path.is_file() and "[CLS]" in regular_file(path).read_text("utf-8", "replace").split()


def dictionary_path(directory: str | os.PathLike) -> Path:
    """Return the dictionary file of a codec's folder.

    Raises FileNotFoundError, and IrregularFileError for a pipe or a device.
    """
    path = Path(directory) / "dict.txt"
    try:
        return regular_file(path)
    except IrregularFileError:
        raise
    except OSError:
        raise FileNotFoundError(
            f"{path}: no dictionary. Give the folder of dict.txt with --bpe-dir. {OFFICIAL_FOLDER}"
        ) from None


def dictionary_symbols(code_dict_size: int = 8192, num_bins: int = 1000) -> list[str]:
    """Return OFA's symbols after those of dict.txt: mask, image codes, position bins."""
    codes = [f"<code_{code}>" for code in range(code_dict_size)]
    return ["<mask>", *codes, *(f"<bin_{bin_}>" for bin_ in range(num_bins))]


class Vocabulary(Protocol):
    """The part of fairseq's Dictionary used here; ``index`` gives ``unk()`` for unknown symbols."""

    def bos(self) -> int: ...

    def pad(self) -> int: ...

    def eos(self) -> int: ...

    def unk(self) -> int: ...

    def index(self, sym: str) -> int: ...

    def __len__(self) -> int: ...


def check_prompt_words(encoder: "TextEncoder", texts: Iterable[str]) -> None:
    """Raise ValueError if the dictionary lacks a word that a task adds to every row."""
    unknown: list[str] = []
    for text in texts:
        encoder.encode(text, unknown)
    if unknown and isinstance(encoder.codec, WordCodec) and _lists_bpe(encoder.vocabulary):
        raise ValueError(
            "dict.txt lists numbers of GPT-2's BPE, and its folder lacks encoder.json and "
            f"vocab.bpe: add them. {OFFICIAL_FOLDER}"
        )
    if unknown:
        missing = ", ".join(map(repr, dict.fromkeys(unknown)))
        raise ValueError(
            f"the dictionary lacks {missing} of the task's prompt: add them to dict.txt with "
            "ofa-exit dict, or give the dictionary of the checkpoint with --bpe-dir"
        )


def _lists_bpe(vocabulary: Vocabulary) -> bool:
    """Return whether a vocabulary has GPT-2's numbers of " the", " a" and " of"."""
    return all(vocabulary.index(number) != vocabulary.unk() for number in ("262", "257", "286"))


class TextEncoder:
    """Text to token numbers by a codec and a vocabulary."""

    def __init__(self, codec: TextCodec, vocabulary: Vocabulary):
        self.codec = codec
        self.vocabulary = vocabulary
        self._reserved = {vocabulary.bos(), vocabulary.pad(), vocabulary.eos()}

    def encode(self, text: str, unknown: list[str] | None = None) -> Tensor:
        """Return Long [T] without bos and eos; append symbols that became unk to ``unknown``.

        A text that spells a reserved symbol ("<pad>") becomes unk.
        """
        unk = self.vocabulary.unk()
        tokens = []
        for symbol in self.codec.encode(text).split():
            token = self.vocabulary.index(symbol)
            if token in self._reserved or token == unk:
                token = unk
                if unknown is not None:
                    unknown.append(symbol)
            tokens.append(token)
        return torch.tensor(tokens, dtype=torch.long)

    def encode_source(self, text: str, unknown: list[str] | None = None) -> Tensor:
        """Return bos, the tokens of ``text``, eos: Long [T]."""
        tokens = self.encode(text, unknown)
        bos, eos = tokens.new_tensor([[self.vocabulary.bos()], [self.vocabulary.eos()]])
        return torch.cat([bos, tokens, eos])

"""OFA's vocabulary as a fairseq dictionary that can also print words outside it."""

import codecs
import hashlib
import os
import re
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.data import Dictionary
from torch import Tensor

from ofa_exit.data.text import TextCodec, dictionary_path, dictionary_symbols
from ofa_exit.regular_files import regular_file


class OFADictionary(Dictionary):
    """A dictionary with a second table of words, for printing references.

    ``fairseq-generate`` prints references and passes them to scorers as token numbers. A reference
    may hold words that the model does not know. They get numbers from ``len(self)`` on, which only
    ``self[number]`` reads: size, lookup and model do not change.
    """

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self.words = 0
        """Number of words of dict.txt, which follow the four special ones."""
        self.path: Optional[Path] = None
        self._shown: list[str] = []
        self._shown_index: dict[str, int] = {}

    @classmethod
    def of_folder(
        cls, directory: str | os.PathLike, code_dict_size: int, num_bins: int
    ) -> "OFADictionary":
        """Load in OFA's order: bos, pad, eos, unk, dict.txt, ``<mask>``, image codes, bins."""
        path: Path = dictionary_path(directory)
        with regular_file(path).open("rb") as file:
            if file.read(3) == codecs.BOM_UTF8:  # it would be part of the first word
                raise ValueError(f"{path} begins with a byte order mark. Save it as plain UTF-8")
        dictionary = cls._loaded(path)
        dictionary.words, dictionary.path = len(dictionary) - dictionary.nspecial, path
        for symbol in dictionary_symbols(code_dict_size, num_bins):
            dictionary.add_symbol(symbol)
        return dictionary

    @classmethod
    def _loaded(cls, path: Path) -> "OFADictionary":
        """Read dict.txt as fairseq does. Raises ValueError, with file and remedy, if it cannot."""
        try:
            return cls.load(str(path))
        except OSError:
            raise
        except Exception as error:  # a RuntimeError or a bare Exception
            found = re.match(r"Duplicate word found .*?: '(.*?)'\. ", str(error))
            reason = (
                f"the word {found[1]!r} comes twice, or is one that is added" if found else error
            )
            raise ValueError(f"{path}: {reason}. Give the dict.txt of the checkpoint") from error

    def fingerprint(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of dict.txt: its length and a hash of its words."""
        return {"words": self.words, "sha256": self.hash_of(self.words)}

    def hash_of(self, count: int) -> str:
        """Return the SHA-256 of the first ``count`` words of dict.txt, in their order."""
        return hashlib.sha256("\n".join(self.own_words()[:count]).encode()).hexdigest()

    def own_words(self) -> list[str]:
        """Return the words of dict.txt, without the symbols that fairseq and OFA add."""
        return self.symbols[self.nspecial : self.nspecial + self.words]

    def __getitem__(self, number: int) -> str:
        index = int(number) - len(self.symbols)
        if 0 <= index < len(self._shown):
            return self._shown[index]
        return super().__getitem__(number)

    def shown_references(self, codec: TextCodec, references: list[str]) -> Tensor:
        """Return the references, joined by ``&&`` and with eos, as tokens that ``string`` prints.

        Long [T], not for a model.
        """
        symbols = codec.encode(" " + " && ".join(references)).split()
        return torch.tensor([*map(self._shown_number, symbols), self.eos()])

    def _shown_number(self, symbol: str) -> int:
        if symbol in self.indices:
            number = self.indices[symbol]
            if number >= self.nspecial:  # a reference may contain the text <pad> or <unk>
                return number
        if symbol not in self._shown_index:
            self._shown_index[symbol] = len(self.symbols) + len(self._shown)
            self._shown.append(symbol)
        return self._shown_index[symbol]


class PrintingCodec:
    """A codec that removes the space before the first of GPT-2's words."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec

    def encode(self, text: str) -> str:
        return self.codec.encode(text)

    def decode(self, symbols: str) -> str:
        return self.codec.decode(symbols).strip()

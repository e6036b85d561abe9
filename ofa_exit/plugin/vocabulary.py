"""OFA's vocabulary as a fairseq dictionary that can also print words it lacks."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from fairseq.data import Dictionary
from torch import Tensor

from ofa_exit.data.text import TextCodec, dictionary_path, dictionary_symbols


class OFADictionary(Dictionary):
    """A dictionary with a second table, for printing alone.

    ``fairseq-generate`` shows references, and hands them to the scorers, by way of token numbers.
    References may hold words that the model does not know; those get numbers from ``len(self)`` on,
    which ``self[number]`` reads and nothing else does: size, lookup and model stay as they are.
    """

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self._shown: list[str] = []
        self._shown_index: dict[str, int] = {}

    @classmethod
    def of_folder(
        cls, directory: str | os.PathLike, code_dict_size: int, num_bins: int
    ) -> "OFADictionary":
        """OFA's order: bos, pad, eos, unk, dict.txt, ``<mask>``, image codes, position bins."""
        path: Path = dictionary_path(directory)
        dictionary = cls.load(str(path))
        for symbol in dictionary_symbols(code_dict_size, num_bins):
            dictionary.add_symbol(symbol)
        return dictionary

    def __getitem__(self, number: int) -> str:
        beyond = int(number) - len(self.symbols)
        if 0 <= beyond < len(self._shown):
            return self._shown[beyond]
        return super().__getitem__(number)

    def shown_tokens(self, symbols: Iterable[str]) -> Tensor:
        """Long [T] such that ``string`` gives the symbols back; not to be fed to a model."""
        return torch.tensor([self._shown_number(symbol) for symbol in symbols], dtype=torch.long)

    def shown_references(self, codec: TextCodec, references: list[str]) -> Tensor:
        """The references joined by ``&&``, for ``shown_tokens``; ends with eos."""
        tokens = self.shown_tokens(codec.encode(" " + " && ".join(references)).split())
        return torch.cat([tokens, tokens.new_tensor([self.eos()])])

    def _shown_number(self, symbol: str) -> int:
        if symbol in self.indices:
            number = self.indices[symbol]
            if number >= self.nspecial:  # a word that spells <pad> or <unk> is a word
                return number
        if symbol not in self._shown_index:
            self._shown_index[symbol] = len(self.symbols) + len(self._shown)
            self._shown.append(symbol)
        return self._shown_index[symbol]


class PrintingCodec:
    """A codec whose texts do not begin with the space that GPT-2's words have before them."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec

    def encode(self, text: str) -> str:
        return self.codec.encode(text)

    def decode(self, symbols: str) -> str:
        return self.codec.decode(symbols).strip()

"""Generation over a part of the vocabulary: fewer words to score, and to search."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ofa_exit.data.text import dictionary_symbols
from ofa_exit.plugin.errors import UsageError

TASK = "task"


class TargetWords:
    """The words that a generation may use, and fairseq's view of them as a small dictionary.

    Search runs on their numbers 0…K-1; ``full`` and ``reduced`` translate. bos, pad, eos and unk
    keep their numbers.
    """

    def __init__(self, dictionary: Any, kept: Sequence[int]) -> None:
        special = range(dictionary.nspecial)
        self.dictionary = dictionary
        self.kept = torch.tensor([*special, *sorted(set(kept) - set(special))])
        self.places = torch.full((len(dictionary),), -1)
        self.places[self.kept] = torch.arange(len(self.kept))

    def __len__(self) -> int:
        return len(self.kept)

    def bos(self) -> int:
        return self.dictionary.bos()

    def pad(self) -> int:
        return self.dictionary.pad()

    def eos(self) -> int:
        return self.dictionary.eos()

    def unk(self) -> int:
        return self.dictionary.unk()

    def to(self, device: torch.device) -> "TargetWords":
        """Moves the tables to the device of the tokens."""
        if self.kept.device != device:
            self.kept, self.places = self.kept.to(device), self.places.to(device)
        return self

    def full(self, tokens: Tensor) -> Tensor:
        """Numbers of the dictionary for those of the search."""
        return self.to(tokens.device).kept[tokens]

    def reduced(self, tokens: Tensor) -> Tensor:
        """Numbers of the search for those of the dictionary, of tokens that are to be forced.

        Raises UsageError for a word that is left out.
        """
        places = self.to(tokens.device).places[tokens]
        if (places < 0).any():
            word = self.dictionary[int(tokens[places < 0][0])]
            raise UsageError(f"--prefix-size forces {word!r}, which --target-words leaves out")
        return places


def target_words(choice: str, dictionary: Any, code_dict_size: int, num_bins: int) -> TargetWords:
    """The words of ``--target-words``: ``task`` leaves out the mask, image codes and position bins;
    a file lists those to keep, one symbol of dict.txt a line (what follows it is not read).

    Raises UsageError with file and line for what is no symbol.
    """
    if choice == TASK:
        numbers = range(len(dictionary) - len(dictionary_symbols(code_dict_size, num_bins)))
        return TargetWords(dictionary, numbers)
    try:
        lines = Path(choice).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--target-words {choice!r} cannot be read ({error}): give a text file of symbols, one "
            f"a line, or {TASK!r}"
        ) from error
    kept = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        symbol = line.split()[0]
        if symbol not in dictionary.indices:
            raise UsageError(
                f"{choice}:{number}: {symbol!r} is not in the dictionary; a line begins with a "
                "symbol as dict.txt has it"
            )
        kept.append(dictionary.indices[symbol])
    if not kept:
        raise UsageError(f"--target-words {choice!r} holds no symbol")
    return TargetWords(dictionary, kept)

"""A closed set of answers as a prefix tree: which tokens may follow a prefix."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class AnswerTrie:
    """The tokens that may follow a prefix of one of ``answers``; every answer ends in ``eos``.

    Answers and prefixes are token numbers without bos; ``eos`` is added here. Raises ValueError for
    no answers, an empty answer, an answer with eos, or two equal answers.
    """

    def __init__(self, answers: Iterable[Sequence[int]], eos: int):
        self.answers = [[int(token) for token in answer] for answer in answers]
        self.eos = eos
        self._next: dict[tuple[int, ...], set[int]] = {}
        if not self.answers:
            raise ValueError("no answers to choose from")
        self._known = set(map(tuple, self.answers))
        if len(self._known) < len(self.answers):
            twice = next(a for a in self.answers if self.answers.count(a) > 1)
            raise ValueError(f"two answers have the same tokens: {twice}")
        for answer in self.answers:
            if not answer or eos in answer:
                raise ValueError(f"an answer is empty or holds the end symbol: {answer}")
            for length, token in enumerate([*answer, eos]):
                self._next.setdefault(tuple(answer[:length]), set()).add(token)

    def __contains__(self, answer: Sequence[int]) -> bool:
        """Return whether ``answer``, without eos, is one of the answers."""
        return tuple(answer) in self._known

    def prefixes(self) -> list[tuple[int, ...]]:
        """Return all prefixes after which a token follows, shorter ones first."""
        return sorted(self._next, key=len)

    def branches(self) -> list[tuple[int, ...]]:
        """Return the prefixes after which several tokens may follow, shorter ones first.

        A model decides at these prefixes only.
        """
        return sorted((p for p, following in self._next.items() if len(following) > 1), key=len)

    def allowed_next(self, prefix: Sequence[int]) -> list[int]:
        """Return the tokens allowed after ``prefix``, ascending; none for other prefixes."""
        return sorted(self._next.get(tuple(prefix), ()))

    def mask(self, target: Tensor, prompt_length: int, vocabulary_size: int) -> Tensor:
        """Return Bool [L, V] for ``target`` Long [L], True for the tokens allowed at a position.

        The answer begins at position ``prompt_length`` - 1, where the last prompt token is the
        input. Before it every token is allowed.
        Differs from OFA, which allows none there: rows of -inf, hence NaN, at ignored positions.
        Raises ValueError if the rest of ``target`` is not an answer with its eos.
        """
        start = prompt_length - 1
        answer = target[start:].tolist()
        if not answer or answer[-1] != self.eos or answer[:-1] not in self:
            known = f"{self.answers[:3]}" + ", …" * (len(self.answers) > 3)
            raise ValueError(f"{answer} is not one of the answers {known}")
        mask = torch.ones(len(target), vocabulary_size, dtype=torch.bool)
        mask[start:] = False
        for length in range(len(answer)):
            mask[start + length, self.allowed_next(answer[:length])] = True
        return mask

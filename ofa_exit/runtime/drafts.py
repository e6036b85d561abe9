"""Drafts of self-speculative decoding: how they are made, and the scores that verify them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.runtime.rows import to_host

AllowedWords = Callable[[int, Sequence[int]], Optional[Sequence[int]]]
"""Return the words that can follow a sentence's tokens, bos included; None for any word.

Arguments are the sentence's number in the batch that was encoded, and its tokens.
"""


@dataclass(frozen=True)
class Drafting:
    """The first layers draft tokens, and the other layers verify them in one pass.

    LayerSkip (Elhoushi et al. 2024), Section 4.3.

    Attributes:
        tokens: how many are drafted at a time (K).
        layer: the layer after which the shared head drafts (E).
    """

    tokens: int
    layer: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"--exit-lossless {self.tokens}: draft at least 1 token at a time")
        if self.layer < 1:
            raise ValueError(f"--exit-lossless-layer {self.layer}: give at least 1")

    def check(self, decoder_layers: int) -> None:
        """Raise ValueError unless layers are left to verify the drafts."""
        if self.layer >= decoder_layers:
            raise ValueError(
                f"--exit-lossless-layer {self.layer}: the model has {decoder_layers} decoder "
                "layers, and at least one must be left to verify the drafts. Lower it"
            )


@dataclass
class _Round:
    """What one pass verified for a row.

    Attributes:
        start: position of the first token.
        tokens: the row's newest token, and the drafts after it.
        scores: of the next word at full depth after each of them, [P, V].
    """

    start: int
    tokens: list[int]
    scores: Tensor


class DraftBuffer:
    """Word scores of full depth after the drafts of N rows, until the search asks for them.

    Scores after a draft are those of full depth only if all drafts before it and itself are the
    tokens that the search has chosen. As soon as it chooses another token, the rest is dropped.
    """

    def __init__(self, rows: int) -> None:
        self._rounds: list[Optional[_Round]] = [None] * rows

    def missing(self, position: int, newest: Sequence[int]) -> list[int]:
        """Return the rows without scores for the newest token of each row, at ``position``."""
        rows = []
        for row, (held, token) in enumerate(zip(self._rounds, newest, strict=True)):
            if held is not None:
                offset = position - held.start
                if offset < len(held.tokens) and held.tokens[offset] == token:
                    continue
            self._rounds[row] = None
            rows.append(row)
        return rows

    def add(
        self, rows: Sequence[int], start: int, tokens: Sequence[list[int]], scores: Tensor
    ) -> None:
        """Keep the scores [R, P, V] after ``tokens``, at most P per row, from ``start`` on."""
        for row, row_tokens, row_scores in zip(rows, tokens, scores, strict=True):
            # A copy: a view would keep the scores of all rows of the round.
            self._rounds[row] = _Round(start, row_tokens, row_scores[: len(row_tokens)].clone())

    def scores(self, position: int) -> Tensor:
        """Return the scores [N, 1, V] after the tokens at ``position``; no row may miss them."""
        found = []
        for held in self._rounds:
            assert held is not None
            offset = position - held.start
            found.append(held.scores[offset : offset + 1])  # [1, V]
        return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)

    def reorder(self, new_order: Tensor) -> None:
        """Follow a search of one hypothesis per sentence, which only drops finished sentences."""
        if new_order.numel() != len(self._rounds):
            self._rounds = [self._rounds[row] for row in to_host(new_order)]

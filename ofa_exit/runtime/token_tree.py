"""Sequences with common prefixes, packed into one row so that each token runs once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor


@dataclass
class TokenTree:
    """A tree of sequences in each of N rows of L tokens.

    Attributes:
        depth: Long [N, L], a token's position in its sequence, from 0.
        ancestors: Bool [N, L, L], True where a token (second axis) attends to another (third): to
            those before it in its sequence, and to itself.
        asked: Bool [N, L], the tokens whose next word is scored. The others run only as far as
            these need them.
        length: of the longest sequence, larger than any depth.
        words: Long [W], all words that can follow a token; None for the whole vocabulary.
        allowed: returns Bool [N, L, W], the words that can follow each token of ``asked``.
    """

    depth: Tensor
    ancestors: Tensor
    asked: Tensor
    length: int
    words: Optional[Tensor] = None
    allowed: Optional[Callable[[], Tensor]] = None

    def self_bias(self, bias: Tensor) -> Tensor:
        """Return the self-attention bias of the tree's tokens.

        Args:
            bias: of a plain sequence, [1, heads, length, length].

        Returns:
            [N, heads, L, L], -inf where a token does not attend to the other.
        """
        pairs = bias[0, :, self.depth[:, :, None], self.depth[:, None, :]].transpose(0, 1)
        return pairs.masked_fill(~self.ancestors[:, None], float("-inf"))

    def cross_bias(self, bias: Tensor) -> Tensor:
        """Return the cross-attention bias of the tree's tokens.

        Args:
            bias: of plain sequences of S sentences, [S, heads, length, T].

        Returns:
            [N, heads, L, T].
        """
        sentences = torch.arange(bias.size(0), device=bias.device)
        sentence = sentences.repeat_interleave(self.depth.size(0) // bias.size(0))  # Long [N]
        return bias[sentence[:, None], :, self.depth].transpose(1, 2)

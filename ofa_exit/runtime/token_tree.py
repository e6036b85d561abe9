"""Sequences that share beginnings, packed into one row so that each token is run once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor


@dataclass
class TokenTree:
    """How the L tokens of each of N rows form a tree of sequences.

    depth: Long [N, L], a token's place in its sequence, 0 for the first.
    ancestors: Bool [N, L, L], True where a token (second axis) sees another (third): those before
        it in its sequence, and itself.
    asked: Bool [N, L], the tokens whose next word is asked for. The others are run only as far as
        these need them.
    length: longest sequence, a number larger than any depth.
    words: Long [W], the words that can be next anywhere; None for the whole vocabulary.
    allowed: returns Bool [N, L, W], those that can be next there; any where nothing is asked.
    """

    depth: Tensor
    ancestors: Tensor
    asked: Tensor
    length: int
    words: Optional[Tensor] = None
    allowed: Optional[Callable[[], Tensor]] = None

    def self_bias(self, bias: Tensor) -> Tensor:
        """Bias of sequences [1, heads, length, length] at the pairs of the tree, [N, heads, L, L],
        -inf where one token does not see the other."""
        pairs = bias[0, :, self.depth[:, :, None], self.depth[:, None, :]].transpose(0, 1)
        return pairs.masked_fill(~self.ancestors[:, None], float("-inf"))

    def cross_bias(self, bias: Tensor) -> Tensor:
        """Bias of S sentences' sequences [S, heads, length, T] at the tokens, [N, heads, L, T]."""
        group = self.depth.size(0) // bias.size(0)
        sentence = torch.arange(self.depth.size(0), device=bias.device).div(
            group, rounding_mode="floor"
        )
        return bias[sentence[:, None], :, self.depth].transpose(1, 2)

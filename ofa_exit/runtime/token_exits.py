"""Image tokens that exit one by one: which of them still run in a layer of the encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ofa_exit.policies.measures import hidden_saturation
from ofa_exit.policies.thresholds import PerLayer, at_layer, numbers_of


@dataclass(frozen=True)
class TokenExits:
    """Let the most saturated tokens of an image exit after a layer.

    A token that has exited keeps its state. It stops being a query of attention and skips the
    feed-forward block. Later layers still project keys and values from its state, so the other
    tokens and the decoder see it.

    The number of tokens that stay is fixed, so batches stay rectangular and nothing is read on the
    host. Which tokens stay depends on the sample alone. MuE names such exits as future work.

    Attributes:
        shares: the share of an image's tokens that run in layers 2, 3, …: one number for all of
            them, or one per layer, which never rises.
    """

    shares: PerLayer

    def __post_init__(self) -> None:
        """Raise ValueError for a share out of (0, 1], or one above that of an earlier layer."""
        shares = numbers_of(self.shares)
        for share in shares:
            if not 0 < share <= 1:
                raise ValueError(f"{share:g} is no share of the tokens: give one above 0, up to 1")
        for earlier, later in zip(shares, shares[1:]):
            if later > earlier:
                raise ValueError(f"{later:g} follows {earlier:g}: a token that exited stays out")

    def count(self, layer: int, tokens: int) -> int:
        """Return how many of an image's tokens run in a layer, from 1."""
        if layer == 1:
            return tokens
        return math.ceil(at_layer(self.shares, layer - 1) * tokens)


def least_saturated(previous: Tensor, current: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Return the ``count`` tokens of each row that the last layer changed most.

    Args:
        previous, current: states before and after the layer, [R, T, C].
        tokens: Long [R, K], increasing: places of those that ran.

    Returns: Long [R, count], increasing.
    """
    cosines = hidden_saturation(previous, current).gather(1, tokens)  # [R, K]
    staying = cosines.topk(count, dim=1, largest=False, sorted=False).indices
    return tokens.gather(1, staying).sort(dim=1).values

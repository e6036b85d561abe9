"""MuE's layer-wise task loss: cross-entropy on every decoder layer (Eqs. 12 and 13)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Scores = TypeVar("Scores")

MAX_KEPT_NUMBERS = 2**26
"""Numbers of all layers' logits that wait for the backward pass: 256 MB in float32."""


def parse_layer_weights(spec: str, layers: Sequence[int]) -> dict[int, float]:
    """Return the weights of the decoder layers' losses, by layer, with sum 1.

    ``uniform`` is the mean of Eq. 12, ``last`` the plain loss of a model without exits. Numbers
    separated by commas, one per layer, are any other mixture. With ``rising`` layer i weighs i, as
    in the code of PABEE and of CALM.

    Args:
        layers: the layers with a loss, from 1, in increasing order.

    Raises:
        ValueError: the numbers are no weights for that many layers.
    """
    if spec == "uniform":
        weights = [1.0] * len(layers)
    elif spec == "last":
        weights = [0.0] * (len(layers) - 1) + [1.0]
    else:
        weights = [float(layer) for layer in layers] if spec == "rising" else _numbers(spec)
    if len(weights) != len(layers):
        raise ValueError(
            f"layer weights {spec!r} are {len(weights)} numbers, but the loss is over "
            f"{len(layers)} layers: give one for each"
        )
    return {layer: weight / sum(weights) for layer, weight in zip(layers, weights)}


def check_layer_weights(spec: str) -> None:
    """Raise ValueError if ``spec`` is invalid for any number of layers."""
    if spec not in ("uniform", "rising", "last"):
        _numbers(spec)


def _numbers(spec: str) -> list[float]:
    try:
        weights = [float(number) for number in spec.split(",")]
    except ValueError:
        raise ValueError(
            f"layer weights {spec!r}: give 'uniform', 'rising', 'last' or numbers separated by "
            "commas"
        ) from None
    # A last weight of 0 would leave parameters without a gradient, and data-parallel training waits
    # for one.
    if not all(math.isfinite(w) and w >= 0 for w in weights) or weights[-1] == 0:
        raise ValueError(
            f"layer weights {spec!r}: each must be finite and not negative, and the last positive"
        )
    return weights


def score_layers(
    features: Mapping[int, Tensor], score: Callable[[int, Tensor], Scores], numbers: int
) -> dict[int, Scores]:
    """Score the layers one after the other, with a bound on the memory of their logits.

    ``score`` projects a layer's features to logits and reduces those to numbers. The backward pass
    needs the logits again. Those of the last layers stay in memory, at least of one layer and as
    many as ``MAX_KEPT_NUMBERS`` allows. The other layers are checkpointed: their logits are
    recomputed, which costs one more projection per layer. Dropout in ``score`` drops the same
    features then.

    Args:
        features: by layer its states, [M, C] each.
        score: of layer and features.
        numbers: how many numbers ``score`` keeps of a token, such as V for one row of logits.

    Returns: what ``score`` returned, by layer.
    """
    per_layer = numbers * max((x.size(0) for x in features.values()), default=1)
    kept = max(1, MAX_KEPT_NUMBERS // max(per_layer, 1))
    scores = {}
    for number, (layer, states) in enumerate(features.items(), start=1):
        if number <= len(features) - kept and torch.is_grad_enabled():
            scores[layer] = checkpoint(score, layer, states, use_reentrant=False)
        else:
            scores[layer] = score(layer, states)
    return scores

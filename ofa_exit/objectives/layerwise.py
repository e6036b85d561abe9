"""MuE's layer-wise task loss: every decoder layer predicts the words (Eqs. 12 and 13)."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Scores = TypeVar("Scores")


def parse_layer_weights(spec: str, layers: int) -> list[float]:
    """Return the weights of the decoder layers' losses, first to last, with sum 1.

    Args:
        spec: ``uniform`` (the mean of Eq. 12), ``last`` (the plain loss of a model without exits),
            or one number per layer, separated by commas.
        layers: number of decoder layers.

    Raises:
        ValueError: if ``spec`` gives no weights for that many layers. The last weight must not
            be 0: parameters without a gradient break data-parallel training.
    """
    if spec == "uniform":
        return [1 / layers] * layers
    if spec == "last":
        return [0.0] * (layers - 1) + [1.0]
    try:
        weights = [float(number) for number in spec.split(",")]
    except ValueError:
        raise ValueError(
            f"layer weights {spec!r}: use 'uniform', 'last' or numbers separated by commas"
        ) from None
    if len(weights) != layers:
        raise ValueError(
            f"layer weights {spec!r} are {len(weights)} numbers, but the decoder has {layers} "
            "layers. Give one per layer."
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights) or weights[-1] == 0:
        raise ValueError(
            f"layer weights {spec!r}: each must be finite and at least 0, and the last above 0"
        )
    return [w / sum(weights) for w in weights]


def score_layers(
    features: Sequence[Tensor], weights: Sequence[float], score: Callable[[Tensor], Scores]
) -> dict[int, Scores]:
    """Score the layers one by one, with the logits of one layer in memory at a time.

    All layers but the last are checkpointed: their logits are freed after the forward pass and
    computed again in the backward pass. This costs one more projection per layer. A loss of the
    last layer alone costs nothing more.

    Args:
        features: hidden states of each decoder layer after the final norm, [M, C] each.
        weights: one per layer; layers of weight 0 are not scored.
        score: project features [M, C] to logits and reduce those to numbers.

    Returns: the results of ``score`` by layer, counted from 0.
    """
    scored = [layer for layer, weight in enumerate(weights) if weight]
    scores = {}
    for layer in scored:
        if layer != scored[-1] and torch.is_grad_enabled():
            scores[layer] = checkpoint(
                score, features[layer], use_reentrant=False, preserve_rng_state=False
            )
        else:
            scores[layer] = score(features[layer])
    return scores

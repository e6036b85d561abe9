"""BLIPEE's exits: transformer layers behind layers of the backbone, and feature classifiers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Optional

from torch import Tensor, nn

logger = logging.getLogger(__name__)

EXITS = "decoder.exits."
CLASSIFIERS = "feature_classifiers."


def parse_exit_layers(spec: Optional[str], layers: int) -> list[int]:
    """The decoder layers, counted from 1, behind which exits are, in order; [] for None.

    Raises ValueError for what is no list of different layers before the last.
    """
    if spec is None or not str(spec).strip():
        return []
    try:
        exits = [int(part) for part in str(spec).strip("()[]").split(",")]
    except ValueError:
        raise ValueError(
            f"--exit-layers {spec!r}: give numbers of decoder layers separated by commas, as in 2,4"
        ) from None
    if not all(1 <= layer < layers for layer in exits) or len(set(exits)) != len(exits):
        raise ValueError(
            f"--exit-layers {spec!r}: each a different one of 1 to {layers - 1} (of {layers} "
            "decoder layers the last needs no exit)"
        )
    return sorted(exits)


def build_exits(
    new_layer: Callable[[], nn.Module], layers: nn.ModuleList, exits: list[int]
) -> nn.ModuleDict:
    """Exit transformers by layer number, each a copy of the layer that follows in the backbone.

    "A replica of the layers in the LM" (BLIPEE Section 1); the paper does not say of which. A copy
    of the next layer, under that layer's position biases, makes an untrained exit at layer i the
    backbone after i + 1 layers. Copies of the last layer or of layer i start worse and stay worse
    on the shipped checkpoint.
    """
    built = nn.ModuleDict({str(layer): new_layer() for layer in exits})
    for layer, module in built.items():
        module.load_state_dict(layers[int(layer)].state_dict())
    return built


def fit_exits(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Makes a checkpoint's exits those of the model, in place.

    own, state: state dicts of model and checkpoint. Exits that the checkpoint lacks start as in
    ``build_exits`` from its backbone; feature classifiers that it lacks start anew; those that the
    model lacks, because it is not going to be trained, are left out.

    Raises ValueError if the checkpoint has exits that the model lacks.
    """
    kept, there = _exits_of(own), _exits_of(state)
    if there - kept:
        names = ",".join(map(str, sorted(there)))
        raise ValueError(
            f"the checkpoint has exits behind decoder layers {names}, the model has "
            f"{'them behind ' + ','.join(map(str, sorted(kept))) if kept else 'none'}: add "
            f"--exit-layers {names}"
        )
    missing = sorted(kept - there)
    for name in [name for name in own if name.startswith(EXITS)]:
        layer, _, rest = name.removeprefix(EXITS).partition(".")
        source = f"decoder.layers.{layer}.{rest}"  # counted from 0: the layer behind the exit
        if int(layer) in missing and source in state:
            state[name] = state[source].clone()
    if missing:
        logger.info(
            "missing exit parameters initialised: exits behind decoder layers %s start as copies "
            "of the layers that follow",
            ",".join(map(str, missing)),
        )
    classifiers = [name for name in own if name.startswith(CLASSIFIERS)]
    if any(name not in state for name in classifiers):
        logger.info("missing feature classifiers initialised at random")
    for name in classifiers:
        state.setdefault(name, own[name])
    for name in [name for name in state if name.startswith(CLASSIFIERS) and name not in own]:
        del state[name]


def _exits_of(state: dict[str, Any]) -> set[int]:
    return {int(name.removeprefix(EXITS).split(".")[0]) for name in state if name.startswith(EXITS)}


def without_classifiers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for inference, which needs no feature classifiers."""
    return {name: value for name, value in state.items() if not name.startswith(CLASSIFIERS)}

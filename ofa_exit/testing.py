"""Models with weights drawn from their names, and random inputs, for tests and measurements."""

from __future__ import annotations

import zlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor, nn

from ofa_exit.models.ofa import OFAModel

NORM_NAMES = (
    "layer_norm", "layernorm", "_ln.", "attn_ln", "bn1", "bn2", "bn3", "downsample.1"
)  # fmt: skip


def _generator(text: str) -> np.random.RandomState:
    # numpy's frozen legacy generator: the numbers stay the same in every version.
    return np.random.RandomState(zlib.crc32(text.encode()))


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw the state-dict entry ``name`` from a normal distribution of a scale for its kind."""
    draw: Any = _generator(name).standard_normal(shape).astype(np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        value = 0.5 + np.abs(draw)
    elif leaf == "c_attn":
        value = 1.0 + 0.2 * draw
    elif leaf == "weight" and any(part in name for part in NORM_NAMES):
        value = 1.0 + 0.1 * draw
    elif len(shape) == 4:
        value = draw * np.float32(np.sqrt(2.0 / np.prod(shape[1:])))
    elif "rel_pos_table" in name:
        value = 0.5 * draw
    elif "embed" in name:
        value = 0.3 * draw
    elif len(shape) == 2:
        value = draw * np.float32(1.0 / np.sqrt(shape[1]))
    else:
        value = 0.1 * draw
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def random_tokens(name: str, shape: tuple[int, int], vocab: int) -> Tensor:
    """Draw words of the vocabulary, Long ``shape``; never special symbols or the mask."""
    return torch.from_numpy(_generator("tokens:" + name).randint(4, vocab - 2, shape)).long()


def random_images(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw images, float32 ``shape``."""
    draw = _generator("input:" + name).standard_normal(shape)
    return torch.from_numpy(draw.astype(np.float32))


def build_dictionary(size: int) -> Dictionary:
    """Return a dictionary of ``size`` symbols; all but the special ones are placeholders."""
    dictionary = Dictionary()
    while len(dictionary) < size:
        dictionary.add_symbol(f"w{len(dictionary)}")
    return dictionary


def build_with_weights(options: dict[str, Any], vocab: int, **arguments: Any) -> OFAModel:
    """Build a model in eval mode whose weights are drawn from their names.

    Args:
        options: arguments of the model; ``arguments`` override them.
        vocab: symbols of its dictionary.
    """
    dictionary = build_dictionary(vocab)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = OFAModel.build_model(Namespace(**{**options, **arguments}), task)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            shared = name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
            if value.is_floating_point() and not shared and not name.endswith("version"):
                value.copy_(weight(name, tuple(value.shape)))
        model.encoder.embed_tokens.weight[dictionary.pad()] = 0.0
    return model.eval()


@contextmanager
def record_states(layers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Record the hidden states before the first layer and after each layer while in the context.

    Yields one list of len(layers) + 1 tensors per pass through the layers.
    """
    passes: list[list[Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if layer is layers[0]:
            passes.append([inputs[0]])
        passes[-1].append(output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()

"""FLOPs of a generation, as executed and as full depth would have cost.

Modules state the cost of a unit in ``flops``, next to their ``forward``. The trace records how many
units ran. This file adds. See ``runtime.flops`` for what is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ofa_exit.runtime.flops import PARTS, add_work
from ofa_exit.runtime.trace import ExitTrace


@dataclass(frozen=True)
class ImageCost:
    """Cost of one image before the encoder's layers."""

    flops: int  # of the stem and the projection of its features
    tokens: int  # cells of its feature map


@dataclass(frozen=True)
class BatchFlops:
    """FLOPs of one batch, by part (PARTS): as executed, and with every layer executed."""

    executed: dict[str, int]
    full: dict[str, int]


def image_cost(encoder: Any, image_size: tuple[int, int]) -> ImageCost:
    """Count the FLOPs of the real stem on one image, and of the projection to tokens.

    Runs on meta tensors: nothing is computed or allocated.

    Args:
        image_size: (height, width) in pixels.
    """
    stem: nn.Module = encoder.embed_images
    tensors = {
        name: tensor.detach().to("meta")
        for name, tensor in [*stem.named_parameters(), *stem.named_buffers()]
    }
    image = torch.empty(1, 3, *image_size, device="meta", dtype=next(stem.parameters()).dtype)
    was_training = {module: module.training for module in stem.modules()}
    stem.eval()  # batch statistics and stochastic depth are no part of inference
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = torch.func.functional_call(stem, tensors, (image,))
    finally:
        for module, mode in was_training.items():
            module.train(mode)  # which also drops what was made of meta tensors
    tokens = features.shape[-2] * features.shape[-1]
    return ImageCost(counter.get_total_flops() + encoder.projection_flops(tokens), tokens)


def bias_costs(model: Any, image: int, text: int, positions: int) -> dict[str, int]:
    """Return the FLOPs of the position biases of a batch, by shape.

    They depend on no content, so each shape is computed once for all batches.

    Args:
        image, text: tokens of the source's parts.
        positions: target positions that the decoder's biases cover.
    """
    decoder = model.decoder
    return {
        **model.encoder.bias_flops(image, text),
        f"self {positions}": decoder.self_bias_flops(positions),
        f"cross {image} {text} {positions}": decoder.cross_bias_flops(positions, image + text),
    }


def batch_flops(
    model: Any,
    trace: ExitTrace,
    text_tokens: Sequence[int],
    image: ImageCost | None = None,
) -> BatchFlops:
    """Return the FLOPs of generating for one batch of sentences, position biases left out.

    Args:
        model: an OFAModel, whose modules state their costs.
        trace: what the model ran.
        text_tokens: source lengths without padding.
        image: cost of one image; None for a batch without any.
    """
    executed, full = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    grid = image.tokens if image else 0
    image_layers, text_layers = trace.image_layers.tolist(), trace.text_layers.tolist()
    images = [grid if layers else 0 for layers in image_layers]
    rows = range(len(images)) if trace.image_rows is None else trace.image_rows.tolist()
    layer, depth = model.encoder.layers[0].flops, len(model.encoder.layers)
    encoded: set[int] = set()  # an image that several sentences share is encoded once
    for row, cells, text, used_image, used_text in zip(
        rows, images, text_tokens, image_layers, text_layers, strict=True
    ):
        first = row not in encoded
        encoded.add(row)
        if image and cells and first:
            executed["stem"] += image.flops
            full["stem"] += image.flops
        if model.cfg.split_modalities:
            image_layer = layer(cells) if first else 0
            executed["encoder"] += used_image * image_layer + used_text * layer(text)
            full["encoder"] += depth * (image_layer + layer(text))
        else:
            executed["encoder"] += max(used_image, used_text) * layer(cells + text)
            full["encoder"] += depth * layer(cells + text)
    sources = [cells + text for cells, text in zip(images, text_tokens, strict=True)]
    for step in trace.steps:
        present = _sources_of(step.sentence.tolist(), sources)
        add_work(executed, step.work, present)
        add_work(full, step.full_work, present)
    return BatchFlops(executed, full)


def flop_reduction(executed: dict[str, int], full: dict[str, int]) -> float:
    """Return 1 - executed / full FLOPs, stem and scoring of words included.

    Eq. 14 of MuE weighted by real cost.
    """
    return 1 - sum(executed.values()) / sum(full.values())


def _sources_of(sentence_of_row: list[int], sources: Sequence[int]) -> list[int]:
    """Return the source tokens of each sentence present, from the sentence of each row."""
    return [sources[number] for number in dict.fromkeys(sentence_of_row)]

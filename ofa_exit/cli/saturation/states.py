"""Hidden states before and after every layer of a model, and their cosines."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ofa_exit.evaluation.figures.saturation import CONSECUTIVE, LAST
from ofa_exit.policies.measures import hidden_saturation, sample_saturation
from ofa_exit.testing import record_states

States = list[Tensor]
"""Before layer 1 and after every layer, [B, T, C] each."""


@torch.no_grad()
def layer_states(model: Any, net_input: dict[str, Any]) -> dict[str, States]:
    """Run a teacher-forced pass at full depth; return the states by part.

    A split encoder has the parts image and text, others have joint. A split encoder's image rows
    are the batch's images, of which sentences may share one.
    """
    model.configure_exits(None)
    with (
        record_states(model.encoder.layers) as encoder_passes,
        record_states(model.decoder.layers) as decoder_passes,
    ):
        # Without text_keys: a text pass that was kept would not meet the hooks.
        model(**{name: value for name, value in net_input.items() if name != "text_keys"})
    # A split encoder runs all layers over the image, then over the text.
    parts = ("image", "text") if len(encoder_passes) > 1 else ("joint",)
    return {**dict(zip(parts, encoder_passes)), "decoder": decoder_passes[0]}


def cosines(
    states: dict[str, States], sample: dict[str, Any], pad: int
) -> Iterator[tuple[tuple[str, str, int], Tensor]]:
    """Yield ((part, measure, layer), cosines float32 [M]) of a batch.

    These are the measures of ``--exit-policy similarity``: in the encoder one cosine per sample
    over all states that are no padding, in the decoder one per word that the loss counts.
    """
    for part, layers in states.items():
        last = layers[-1]
        for layer, (before, after) in enumerate(zip(layers, layers[1:]), start=1):
            yield (part, CONSECUTIVE, layer), _measure(part, before, after, sample, pad)
            if layer < len(layers) - 1:
                yield (part, LAST, layer), _measure(part, after, last, sample, pad)


def _measure(part: str, one: Tensor, other: Tensor, sample: dict[str, Any], pad: int) -> Tensor:
    net_input = sample["net_input"]
    if part == "decoder":
        return hidden_saturation(one, other)[sample["target"].ne(pad)]
    masks = net_input["patch_masks"]  # Bool [S], False without an image
    padding = net_input["src_tokens"].eq(pad)  # Bool [S, Tt]
    if part == "image":
        rows = net_input.get("image_rows", torch.arange(len(masks), device=masks.device))
        return sample_saturation(one, other)[rows[masks].unique()]
    if part == "joint":
        cells = one.size(1) - padding.size(1)
        padding = torch.cat([~masks[:, None].expand(-1, cells), padding], dim=1)
    return sample_saturation(one, other, padding)

"""Fixed depths: the first k layers of each part, whatever the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ofa_exit.policies.base import ExitPolicy, GateInput, option


def parse_depths(value: Any) -> tuple[int, ...]:
    """Return (image, text, decoder) of a sequence or of a text such as ``3,3,2``."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        depths = tuple(_whole(part) for part in parts if not isinstance(part, (bool, float)))
    except (TypeError, ValueError):
        depths = ()
    if len(depths) != 3 or len(parts) != 3 or min(depths) < 1:
        raise ValueError(f"{value!r}: give three whole numbers of at least 1, IMAGE,TEXT,DECODER")
    return depths


def _whole(part: Any) -> int:
    """Return a whole number. int reads the digits of any script, and 1_0."""
    if isinstance(part, str) and not (part.strip().isascii() and part.strip().isdecimal()):
        raise ValueError(part)
    return int(part)


@dataclass
class StaticExit(ExitPolicy):
    """Exit every row after a fixed number of layers.

    A number at or above the layer count never exits. Where a head follows the decoder's layer,
    words exit through it.
    """

    depths: Sequence[int] = option(
        dataclasses.MISSING,
        "layers to run: IMAGE,TEXT,DECODER",
        parse=parse_depths,
        metavar="IMAGE,TEXT,DECODER",
    )
    use_exits: bool = option(
        True,
        "whether words exit through the head of the decoder's layer (true or false; default: true)",
    )

    def check(self, model: Any) -> None:
        image, text, words = self.depths
        encoder, decoder = model.encoder_layers, model.decoder_layers
        if max(image, text) > encoder or words > decoder:
            raise ValueError(
                f"--exit-depths {image},{text},{words}: the model has {encoder} encoder and "
                f"{decoder} decoder layers"
            )
        if not model.split_modalities:
            self._joint_depth()

    def _joint_depth(self) -> int:
        """Return the depth of an encoder that runs image and text together.

        Raises:
            ValueError: their depths differ.
        """
        image, text, words = self.depths
        if image != text:
            raise ValueError(
                f"--exit-depths {image},{text},{words}: a model without --split-modalities runs "
                "image and text together, so their depths must be equal"
            )
        return image

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        return [layer for layer in layers if self.use_exits and layer == self.depths[2]]

    def image_gate(self, seen: GateInput) -> bool:
        return seen.layer >= self.depths[0]

    def text_gate(self, seen: GateInput) -> bool:
        return seen.layer >= self.depths[1]

    def joint_gate(self, seen: GateInput) -> bool:
        return seen.layer >= self._joint_depth()

    def decoder_gate(self, seen: GateInput) -> bool:
        return seen.layer >= self.depths[2]

"""Fixed depths: the first k layers of each part, whatever the input."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Optional

from ofa_exit.policies.base import ExitPolicy, Gate, GateInput


@dataclass
class StaticExit(ExitPolicy):
    """Every row leaves after a fixed number of layers.

    depths: layers to run for (image, text, decoder), each at least 1; a number at or above the
        layer count never exits. In an encoder that runs both modalities together, image and text
        must be equal. In a model with an exit behind the decoder's layer, words leave through it.

    Raises ValueError on other depths.
    """

    depths: tuple[int, int, int]
    use_exits: bool = True

    def __post_init__(self) -> None:
        if len(self.depths) != 3 or any(
            isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in self.depths
        ):
            raise ValueError(
                "depths must be three whole numbers of at least 1 (image, text, decoder), "
                f"got {self.depths!r}"
            )
        if not isinstance(self.use_exits, bool):
            raise ValueError(f"use_exits must be true or false, got {self.use_exits!r}")

    def image_gate(self) -> Optional[Gate]:
        return _at(self.depths[0])

    def text_gate(self) -> Optional[Gate]:
        return _at(self.depths[1])

    def joint_gate(self) -> Optional[Gate]:
        if self.depths[0] != self.depths[1]:
            raise ValueError(
                "a joint encoder runs image and text through the same layers: their depths must "
                f"be equal, got {self.depths[0]} and {self.depths[1]}"
            )
        return _at(self.depths[0])

    def decoder_gate(self) -> Optional[Gate]:
        return _at(self.depths[2])

    def exits_used(self, exits: Sequence[int]) -> Collection[int]:
        return [layer for layer in exits if self.use_exits and layer == self.depths[2]]


def _at(depth: int) -> Gate:
    def gate(seen: GateInput) -> bool:
        return seen.layer >= depth

    return gate

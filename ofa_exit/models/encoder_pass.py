"""One pass of the encoder under a gate: what the exit loop drives."""

from __future__ import annotations

from typing import Optional

from torch import Tensor, nn

from ofa_exit.policies.base import GateInput
from ofa_exit.runtime.active_rows import ActiveRows
from ofa_exit.runtime.exit_loop import LayerPass


class EncoderPass(LayerPass):
    """A pass of the encoder's layers over image, text or both, a sample per row."""

    def __init__(
        self, layers: nn.ModuleList, biases: list[Tensor], padding: Optional[Tensor], x: Tensor
    ) -> None:
        self.layers, self.biases, self.padding = layers, biases, padding
        self.depth = len(layers)
        self.rows = ActiveRows(x.size(0), 1, x.device)

    def run_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Run an encoder layer over hidden states [R, T, C]."""
        bias = mask_keys(self.biases[layer - 1], self._row_padding())
        return self.layers[layer - 1](hidden, bias)

    def gate_input(
        self, layer: int, previous: Tensor, current: Tensor, features: Optional[Tensor]
    ) -> GateInput:
        """Return what the gate may look at after a layer."""
        mask, memory = self._row_padding(), self.rows.memory
        return GateInput(previous, current, layer, padding_mask=mask, memory=memory)

    def _row_padding(self) -> Optional[Tensor]:
        return None if self.padding is None else self.rows.select(self.padding)


def mask_keys(bias: Tensor, padding: Optional[Tensor]) -> Tensor:
    """Return the bias [1, heads, T, T] with -inf on padded keys, [B, heads, T, T]."""
    if padding is None:
        return bias
    return bias.masked_fill(padding[:, None, None, :], float("-inf"))

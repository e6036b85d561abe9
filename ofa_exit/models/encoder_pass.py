"""One pass of the encoder: what the exit loop drives, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ofa_exit.models.shared_images import per_sentence
from ofa_exit.policies.base import Gate, GateInput
from ofa_exit.runtime.active_rows import ActiveRows
from ofa_exit.runtime.exit_loop import ExitState, LayerPass, exit_loop, exit_rows
from ofa_exit.runtime.flops import Work


@dataclass
class Biases:
    """Position terms of a batch: embeddings [1, T, C], and each layer's bias per pass."""

    positions: Tensor
    image: Optional[list[Tensor]]
    text: Optional[list[Tensor]]
    joint: Optional[list[Tensor]]


class EncoderPass(LayerPass):
    """A pass of the encoder's layers over image, text or both, a sample per row.

    Attributes:
        output, layers_used: the states at exit [S, T, C], and Long [S], once the pass has run.
    """

    output: Tensor
    layers_used: Tensor

    def __init__(
        self,
        layers: nn.ModuleList,
        biases: list[Tensor],
        x: Tensor,
        padding: Optional[Tensor] = None,
        present: Optional[Tensor] = None,
    ) -> None:
        """Prepare a pass over x [S, T, C].

        Args:
            biases: of every layer, [1, heads, T, T] each.
            padding: Bool [S, T], True on padding; None if there is none.
            present: Bool [S], False for rows that have nothing to run (no image); None if all have.
        """
        self.layers, self.biases, self.x = layers, biases, x
        self.padding, self.present = padding, present
        self.depth = len(layers)
        self.rows = ActiveRows(x.size(0), 1, x.device)

    def run(self, gate: Optional[Gate], checkpoint: bool = False) -> Tensor:
        """Run the layers; rows exit where the gate says. Return the states at exit [S, T, C].

        Args:
            gate: None runs every layer.
            checkpoint: recompute each layer in the backward pass.
        """
        x, present = self.x, self.present
        if gate is None:
            for layer, bias in zip(self.layers, self.biases):
                x = _run_layer(layer, x, mask_keys(bias, self.padding), checkpoint)
            self.output, self.layers_used = x, self._full_depth()
            return x
        absent = torch.zeros(x.size(0), 1, dtype=torch.bool, device=x.device)
        if present is not None:
            absent = ~present.unsqueeze(1)
        state = ExitState(x, absent, heads=False, known=True)
        # Before layer 1, drop the rows that need no layer.
        if present is None or exit_rows(self, state, absent, None):
            exit_loop(self, gate, state)
        self.output, self.layers_used = state.output, state.layers_used.squeeze(1)
        return self.output

    def work(self, sentence_rows: Optional[Tensor] = None) -> Work:
        """Return what the pass did, by row. Padding costs nothing.

        Args:
            sentence_rows: Long [S], the row of each sentence, where sentences that share a row
                count as if each had run. None: by row.
        """
        rows, length = self.x.shape[:2]
        if self.padding is not None:
            tokens = (~self.padding).sum(dim=1)  # Long [S]
        else:
            tokens = torch.full((rows,), length, device=self.x.device)
        layer: Any = self.layers[0]
        units, tokens = (per_sentence(one, sentence_rows) for one in (self.layers_used, tokens))
        return Work("encoder", layer.flops, units, tokens)

    def full_work(self, sentence_rows: Optional[Tensor] = None) -> Work:
        """Return what the pass would have done at full depth; see ``work``."""
        units = per_sentence(self._full_depth(), sentence_rows)
        return self.work(sentence_rows)._replace(units=units)

    def _full_depth(self) -> Tensor:
        """Return the layers of every row without exits, Long [S]."""
        layers = torch.full((self.x.size(0),), self.depth, device=self.x.device)
        return layers if self.present is None else layers * self.present

    # ------------------------------------------------------------------ driven by the exit loop

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


def _run_layer(layer: nn.Module, x: Tensor, bias: Tensor, checkpoint: bool) -> Tensor:
    if checkpoint:
        return torch.utils.checkpoint.checkpoint(layer, x, bias, use_reentrant=False)
    return layer(x, bias)


def mask_keys(bias: Tensor, padding: Optional[Tensor]) -> Tensor:
    """Return the bias [1, heads, T, T] with -inf on padded keys, [B, heads, T, T]."""
    if padding is None:
        return bias
    return bias.masked_fill(padding[:, None, None, :], float("-inf"))

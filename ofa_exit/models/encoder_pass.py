"""One pass of the encoder: what the exit loop drives, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ofa_exit.models.shared_images import per_sentence
from ofa_exit.policies.base import Gate, GateInput
from ofa_exit.runtime.active_rows import ActiveRows
from ofa_exit.runtime.exit_loop import ExitState, LayerPass, exit_loop, exit_rows
from ofa_exit.runtime.flops import Work
from ofa_exit.runtime.token_exits import TokenExits, least_saturated

RUNNING = "tokens that run"  # in the rows' memory, Long [R, Q]: positions of x, increasing


@dataclass
class Biases:
    """Position terms of a batch: embeddings [1, T, C], and each layer's bias per pass."""

    positions: Tensor
    image: Optional[list[Tensor]]
    text: Optional[list[Tensor]]
    joint: Optional[list[Tensor]]


class ImageTokens(NamedTuple):
    """The tokens of images at the start of a pass, and how they exit one by one."""

    cells: int
    exits: TokenExits

    def running(self, layer: int) -> int:
        """Return how many of them run in a layer, from 1."""
        return self.exits.count(layer, self.cells)


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
        token_exits: Optional[ImageTokens] = None,
    ) -> None:
        """Prepare a pass over x [S, T, C].

        Args:
            biases: of every layer, [1, heads, T, T] each.
            padding: Bool [S, T], True on padding; None if there is none.
            present: Bool [S], False for rows that have nothing to run (no image); None if all have.
            token_exits: the first positions of x, which exit one by one; None: with their row.
        """
        self.layers, self.biases, self.x = layers, biases, x
        self.padding, self.present = padding, present
        self.depth = len(layers)
        self.token_exits = token_exits
        self._ran: Optional[Tensor] = None  # Long [R, Q], tokens that ran last; None: all
        self.rows = ActiveRows(x.size(0), 1, x.device)

    def run(self, gate: Optional[Gate], checkpoint: bool = False) -> Tensor:
        """Run the layers; rows exit where the gate says. Return the states at exit [S, T, C].

        Args:
            gate: None runs every layer.
            checkpoint: recompute each layer in the backward pass.
        """
        x, present = self.x, self.present
        if gate is None:
            for layer in range(1, self.depth + 1):
                if checkpoint:
                    x = recomputed(self.run_layer, layer, x, use_reentrant=False)
                else:
                    x = self.run_layer(layer, x)
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

    def work(self, sentence_rows: Optional[Tensor] = None) -> list[Work]:
        """Return what the pass did, by row. Padding costs nothing.

        Args:
            sentence_rows: Long [S], the row of each sentence, where sentences that share a row
                count as if each had run. None: by row.
        """
        units, tokens = (
            per_sentence(one, sentence_rows) for one in (self.layers_used, self._sizes())
        )
        layer: Any = self.layers[0]
        if self.token_exits is None:
            return [Work("encoder", layer.flops, units, tokens)]
        has_image = torch.ones_like(units)
        if self.padding is not None:
            has_image = per_sentence((~self.padding[:, 0]).long(), sentence_rows)
        work = [Work("encoder", layer.flops, units * (1 - has_image), tokens)]
        # Neighbouring layers over as many image tokens are one entry.
        for running, group in groupby(range(1, self.depth + 1), self.token_exits.running):
            layers = list(group)
            ran = (units.clamp(max=layers[-1]) - layers[0] + 1).clamp(min=0) * has_image
            price = partial(_price, layer, self.token_exits.cells - running)
            work.append(Work("encoder", price, ran, tokens))
        return work

    def full_work(self, sentence_rows: Optional[Tensor] = None) -> Work:
        """Return what the pass would have done at full depth; see ``work``."""
        layer: Any = self.layers[0]
        units, tokens = self._full_depth(), self._sizes()
        units, tokens = (per_sentence(one, sentence_rows) for one in (units, tokens))
        return Work("encoder", layer.flops, units, tokens)

    def _sizes(self) -> Tensor:
        """Return the tokens of every row without padding, Long [S]."""
        rows, length = self.x.shape[:2]
        if self.padding is not None:
            return (~self.padding).sum(dim=1)
        return torch.full((rows,), length, device=self.x.device)

    def _full_depth(self) -> Tensor:
        """Return the layers of every row without exits, Long [S]."""
        layers = torch.full((self.x.size(0),), self.depth, device=self.x.device)
        return layers if self.present is None else layers * self.present

    # ------------------------------------------------------------------ driven by the exit loop

    def run_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Run an encoder layer over hidden states [R, T, C]."""
        bias, ran = self.biases[layer - 1], self.rows.memory.get(RUNNING)  # Long [R, Q]
        if ran is not None:
            # [1, heads, T, T] to [R, heads, Q, T]. Whole lines are copied, as they lie in memory.
            lines = bias[0].index_select(1, ran.flatten())
            bias = lines.unflatten(1, ran.shape).transpose(0, 1)
        current = self.layers[layer - 1](hidden, mask_keys(bias, self._row_padding()), ran)
        if self.token_exits is not None:
            self._ran = ran
            self._let_exit(layer, self.token_exits, hidden, current)
        return current

    def _let_exit(self, layer: int, tokens: ImageTokens, previous: Tensor, current: Tensor) -> None:
        """Choose the tokens of the next layer, if fewer image tokens run there.

        Args:
            previous, current: states before and after the layer, [R, T, C].
        """
        if layer == self.depth or tokens.running(layer + 1) == tokens.running(layer):
            return
        ran = self._ran  # Long [R, Q], those of the image first
        if ran is None:
            ran = torch.arange(previous.size(1), device=previous.device)
            ran = ran.expand(len(previous), -1)
        image, text = ran.tensor_split([tokens.running(layer)], dim=1)
        image = least_saturated(previous, current, image, tokens.running(layer + 1))
        self.rows.memory[RUNNING] = torch.cat([image, text], dim=1)

    def gate_input(
        self, layer: int, previous: Tensor, current: Tensor, features: Optional[Tensor]
    ) -> GateInput:
        """Return what the gate may look at after a layer. Tokens that had exited are masked."""
        mask, memory = self._row_padding(), self.rows.memory
        if self._ran is not None:
            exited = torch.ones_like(previous[..., 0], dtype=torch.bool)  # [R, T]
            exited = exited.scatter(1, self._ran, False)
            mask = exited if mask is None else mask | exited
        return GateInput(previous, current, layer, padding_mask=mask, memory=memory)

    def _row_padding(self) -> Optional[Tensor]:
        return None if self.padding is None else self.rows.select(self.padding)


def _price(layer: Any, gone: int, tokens: int) -> int:
    """Return the FLOPs of a layer over T tokens, where ``gone`` of them have exited."""
    return layer.flops(tokens, tokens - gone)


def mask_keys(bias: Tensor, padding: Optional[Tensor]) -> Tensor:
    """Return the bias [1 or B, heads, Q, T] with -inf on padded keys, [B, heads, Q, T]."""
    if padding is None:
        return bias
    return bias.masked_fill(padding[:, None, None, :], float("-inf"))

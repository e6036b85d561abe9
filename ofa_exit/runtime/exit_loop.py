"""The exit loop: layer by layer, a gate after each, for encoder passes and decoder steps alike."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ofa_exit.policies.base import Gate, GateInput
from ofa_exit.runtime.active_rows import ActiveRows
from ofa_exit.runtime.rows import to_host


def exit_loop(layers: LayerPass, gate: Gate, state: ExitState) -> None:
    """Run layers until every row has exited (MuE Algorithm 1, lines 4-11 and 13-19).

    After each layer but the last the gate says which rows exit. A row that exits is frozen: its
    state after that layer is what goes out. Sentences whose rows have all exited leave the
    computation, at once or as soon as that pays (``LayerPass.can_drop``). Until then their rows
    ride along unchanged.

    Args:
        layers: the pass to run; it holds the active rows.
        gate: see ``policies.base.Gate``.
        state: hidden states of the active rows. Afterwards ``state.output`` and
            ``state.layers_used`` hold the result.
    """
    for layer in range(1, layers.depth + 1):
        previous = state.hidden  # [R, P, C]
        current = layers.run_layer(layer, previous)
        state.advance(current, layers.rides_frozen)
        if layer == layers.depth:
            return state.exit_all(layers)
        # What exits here leaves as the head's features, if the policy uses a head after it.
        features = layers.run_head(layer, state.hidden)
        exits = gate(layers.gate_input(layer, previous, current, features))
        if exits is True:
            return state.exit_all(layers, features)
        if exits is False:
            layers.refresh()
        elif not exit_rows(layers, state, exits, features):
            return None
    return None


def exit_rows(
    layers: LayerPass, state: ExitState, exits: Tensor, features: Optional[Tensor]
) -> bool:
    """Freeze the rows that the gate lets exit, and drop sentences that are done.

    The one host read per layer happens here.

    Args:
        exits: Bool [R] or [R, P].
        features: [R, P, C] of the head after this layer, if one is used.

    Returns:
        False when no sentence is active any more.
    """
    rows = layers.rows
    exits = exits.view(len(exits), -1)
    done = layers.read_flags(layers.done(state.exit_mask | exits))  # R·P flags
    if not any(done):
        return True
    state.freeze(exits, features)
    # A sentence is done when all its rows and positions are.
    size = len(done) // len(rows.sentences)
    flags = [done[first : first + size] for first in range(0, len(done), size)]
    staying = [position for position, own in enumerate(flags) if not all(own)]
    if not staying:
        state.write(layers, None, rows.sentences)
        return False
    if len(staying) == len(flags):
        return True
    slices = layers.slices([rows.sentences[position] for position in staying])
    if not layers.can_drop(len(staying), len(flags), slices):
        return True
    leaving = [position for position, own in enumerate(flags) if all(own)]
    state.write(layers, rows.rows(leaving), [rows.sentences[position] for position in leaving])
    state.keep(rows.keep(staying, slices), any(any(flags[position]) for position in staying))
    return True


class LayerPass:
    """A pass over a stack of layers, as the exit loop drives it: one in the encoder, or one step
    of the decoder.

    Attributes:
        depth: layers of the stack.
        rows: the active rows.
        rides_frozen: whether a row that has exited enters further layers as its frozen state;
            otherwise as what the layers make of it.
    """

    depth: int
    rows: ActiveRows
    rides_frozen = True

    def run_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Run a layer, from 1, over the hidden states [R, P, C] of the active rows."""
        raise NotImplementedError

    def run_head(self, layer: int, hidden: Tensor) -> Optional[Tensor]:
        """Run the head after a layer: features [R, P, C]; None if none is used there."""
        return None

    def gate_input(
        self, layer: int, previous: Tensor, current: Tensor, features: Optional[Tensor]
    ) -> GateInput:
        """Return what the gate may look at."""
        raise NotImplementedError

    def done(self, exit_mask: Tensor) -> Tensor:
        """Return where nothing is left to compute, Bool [R, P]."""
        return exit_mask

    def read_flags(self, done: Tensor) -> list[bool]:
        """Read ``done`` on the host, row by row."""
        return to_host(done.flatten())

    def refresh(self) -> None:
        """Called after a layer where the gate let nothing exit without a host read."""

    def slices(self, sentences: list[int]) -> Optional[list[slice]]:
        """Return sentences as slices, if their rows of the K/V cache are read in place."""
        return None

    def can_drop(self, staying: int, active: int, slices: Optional[list[slice]]) -> bool:
        """Return whether done sentences leave the computation now."""
        return True

    def leave(self, hidden: Tensor, index: Tensor | slice, sentences: list[int]) -> None:
        """Called when sentences leave, with their rows' hidden states [L, P, C] and the rows'
        index among all N."""


class ExitState:
    """The hidden states of the active rows, and what has exited.

    Attributes:
        hidden: [R, P, C], the states that enter the next layer.
        frozen: [R, P, C], the state at exit of rows that have exited, else the current one.
        exit_mask: Bool [R, P], or [R, 1] where a row exits as a whole.
        needed: Long [R, P], layers that the rows that have exited used.
        features: [R, P, C], what goes out where heads are used; otherwise None.
        layers_run: layers run so far.
        output, layers_used: the result for all rows, [N, P, C] and Long [N, P].
    """

    def __init__(self, x: Tensor, exit_mask: Tensor, heads: bool, known: bool) -> None:
        """Start from x [N, P, C].

        Args:
            exit_mask: positions that need no layer, such as padding.
            heads: whether rows may leave as features of heads.
            known: whether the host knows that nothing has exited yet.
        """
        self.hidden = self.frozen = x
        self.exit_mask = exit_mask
        self.needed = torch.zeros_like(exit_mask, dtype=torch.long)
        self.features = x if heads else None
        self.layers_run = 0
        self.output = x.clone()
        self.layers_used = torch.zeros_like(self.needed)
        self._any_exited = not known

    def advance(self, current: Tensor, rides_frozen: bool) -> None:
        """Take what a layer returned for the active rows."""
        self.layers_run += 1
        if self._any_exited:  # rows that have exited keep their state at exit
            self.frozen = torch.where(self.exit_mask.unsqueeze(-1), self.frozen, current)
        else:
            self.frozen = current
        self.hidden = self.frozen if rides_frozen else current

    def freeze(self, exits: Tensor, features: Optional[Tensor]) -> None:
        """Mark rows that exit after the layer that ran last."""
        fresh = exits & ~self.exit_mask
        self._any_exited = True
        self.needed = self.needed.masked_fill(fresh, self.layers_run)
        if self.features is not None:
            leaving = self.frozen if features is None else features
            self.features = torch.where(fresh.unsqueeze(-1), leaving, self.features)
        self.exit_mask = self.exit_mask | exits

    def exit_all(self, layers: LayerPass, features: Optional[Tensor] = None) -> None:
        """Let every active row exit after the layer that ran last."""
        self.freeze(torch.ones_like(self.exit_mask), features)
        self.write(layers, None, layers.rows.sentences)

    def write(self, layers: LayerPass, rows: Optional[Tensor], sentences: list[int]) -> None:
        """Write out active rows (None: all) of sentences that leave the computation."""
        chosen: Tensor | slice = slice(None) if rows is None else rows
        index = chosen if layers.rows.index is None else layers.rows.index[chosen]
        # Positions that nobody asks for went as deep as their sentence.
        needed = self.needed[chosen].masked_fill(~self.exit_mask[chosen], self.layers_run)
        self.layers_used[index] = needed
        self.output[index] = (self.frozen if self.features is None else self.features)[chosen]
        layers.leave(self.hidden[chosen], index, sentences)

    def keep(self, rows: Tensor, any_exited: bool) -> None:
        """Keep only some of the active rows; ``any_exited``: whether one of them has exited."""
        self.hidden, self.frozen = self.hidden[rows], self.frozen[rows]
        self.exit_mask, self.needed = self.exit_mask[rows], self.needed[rows]
        if self.features is not None:
            self.features = self.features[rows]
        self._any_exited = any_exited

"""What the decoder remembers between steps, exits included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.runtime.rows import from_host, surviving_sentences


@dataclass
class Pending:
    """Earlier positions of some sentences that a layer has not seen yet.

    positions: Long [Q], the union over the sentences. owed: Bool [A·group, Q, 1], True where the
    hypothesis' sentence really owes that position; None where all do.
    """

    positions: Tensor
    owed: Optional[Tensor]


class DecoderCache:
    """Self-attention K/V of N hypotheses, cross-attention K/V of their S sentences.

    Hypotheses of a sentence sit side by side and share everything that depends on the sentence
    alone. All hypotheses of a sentence run the same layers, so how deep the K/V of a position go is
    one number a sentence, which beam reordering does not change. Finished sentences change only
    which sentences are left: ``stale`` until their names are read together with the next gate.

    kv: [layers, 2, N, heads, capacity, C / heads]. states: [N, capacity, C], for every position the
    state that its missing layers start from; allocated when the first gate is met.
    """

    def __init__(self, layers: int, group: int, max_length: int) -> None:
        self.layers = layers
        self.group = group
        self.max_length = max_length
        self.length = 0
        self.deepest = 0  # layers that anything was stored for
        self.kv: Optional[Tensor] = None
        self.cross: list[Optional[tuple[Tensor, Tensor]]] = [None] * layers
        # Sentences (original numbers) whose cross-attention K/V of a layer are there; None: all.
        self._crossed: list[Optional[set[int]]] = [None] * layers
        self.cross_bias: Optional[Tensor] = None
        self.states: Optional[Tensor] = None
        self.sentences: list[int] = []
        self.stale = False
        # For each layer and sentence (original number) the positions whose K/V it lacks, as bits.
        self._owed: list[list[int]] = []

    @property
    def capacity(self) -> int:
        return 0 if self.kv is None else self.kv.size(4)

    # ------------------------------------------------------------------ plain decoding

    def reserve(self, rows: int, heads: int, head_dim: int, like: Tensor) -> None:
        """Room for one more position; capacity doubles when it runs out."""
        capacity = self.capacity
        if self.length < capacity:
            return
        room = min(max(16, 2 * capacity), self.max_length)
        self.cross_bias = None  # made for the old capacity
        grown = like.new_zeros(self.layers, 2, rows, heads, room, head_dim)
        if self.kv is not None:
            grown[..., :capacity, :] = self.kv
        self.kv = grown
        if self.states is not None:
            states = self.states.new_zeros(rows, grown.size(4), self.states.size(2))
            states[:, :capacity] = self.states
            self.states = states

    def store(
        self,
        layer: int,
        rows: Optional[Tensor],
        positions: Tensor | slice,
        key: Tensor,
        value: Tensor,
        owed: Optional[Tensor] = None,
    ) -> None:
        """Writes K/V [R, heads, Q, C / heads] of ``rows`` (None: all) at ``positions`` [Q].

        owed: Bool [R, Q, 1], False where what is stored already must stay.
        """
        assert self.kv is not None
        key, value = key.to(self.kv.dtype), value.to(self.kv.dtype)  # autocast's may differ
        self.deepest = max(self.deepest, layer + 1)
        for kept, new in zip(self.kv[layer], (key, value)):
            if rows is None:
                if owed is not None:
                    new = torch.where(owed.unsqueeze(1), new, kept[:, :, positions])
                kept[:, :, positions] = new
            elif isinstance(positions, slice):
                kept[rows, :, positions] = new
            else:  # two index tensors around a slice come first: [R, Q, heads, d]
                new, index = new.transpose(1, 2), (rows[:, None], slice(None), positions)
                kept[index] = (
                    new if owed is None else torch.where(owed.unsqueeze(-1), new, kept[index])
                )

    def load(self, layer: int, rows: Optional[Tensor]) -> tuple[Tensor, Tensor]:
        """K/V of all positions there is room for, [R, heads, capacity, C / heads] each.

        Those to come are hidden by the bias: so the shapes of a step stay those of the last, which
        a compiled or captured layer needs, and a few keys more cost nothing beside its weights.
        """
        assert self.kv is not None
        key, value = self.kv[layer]
        if rows is None:
            return key, value
        return key.index_select(0, rows), value.index_select(0, rows)

    def cross_kv(
        self,
        layer: int,
        states: Tensor,
        project: Callable[[Tensor], tuple[Tensor, Tensor]],
        places: Optional[list[int]],
    ) -> tuple[Tensor, Tensor]:
        """Cross-attention K/V of all S sentences present, [S, heads, T, C / heads] each, of which
        those at ``places`` (None: all) can be used: what they lack is projected from ``states``."""
        kept = self.cross[layer]
        if kept is None:
            if places is None:
                # Head by head in a row: every step reads all of it, 0.6 of the time this way.
                key, value = project(states)
                kept = self.cross[layer] = key.contiguous(), value.contiguous()
                return kept
            assert self.kv is not None
            shape = (states.size(0), self.kv.size(3), states.size(1), self.kv.size(5))
            kept = self.cross[layer] = states.new_empty(shape), states.new_empty(shape)
            self._crossed[layer] = set()
        there = self._crossed[layer]
        if there is not None:
            wanted = range(states.size(0)) if places is None else places
            missing = [place for place in wanted if self.sentences[place] not in there]
            if missing:
                there.update(self.sentences[place] for place in missing)
                at = from_host(missing, states.device)
                for all_of_them, new in zip(kept, project(states[at])):
                    all_of_them[at] = new.to(all_of_them.dtype)
        return kept

    def reorder(self, new_order: Tensor) -> None:
        """Follows beam search; see ``Encoder.reorder_encoder_out`` for the contract."""
        assert self.kv is not None
        rows = self.kv.size(2)
        if new_order.numel() == rows:
            if self.group > 1:
                used = self.kv[: self.deepest, ..., : self.length, :]
                used.copy_(used.index_select(2, new_order))
                if self.states is not None:
                    seen = self.states[:, : self.length]
                    seen.copy_(seen.index_select(0, new_order))
            return
        self.kv = self.kv.index_select(2, new_order)
        if self.states is not None:
            self.states = self.states.index_select(0, new_order)
        alive = surviving_sentences(new_order, self.group)
        for layer, kv in enumerate(self.cross):  # one after the other: they are large
            if kv is not None:
                self.cross[layer] = kv[0].index_select(0, alive), kv[1].index_select(0, alive)
        if self.cross_bias is not None:
            self.cross_bias = self.cross_bias.index_select(0, alive)
        self.stale = True

    # ------------------------------------------------------------------ decoding with exits

    def begin_step(self, x: Tensor) -> None:
        """Prepares the record of depths for one more position of x [N, 1, C]."""
        if self.states is None:
            self.sentences = list(range(x.size(0) // self.group))
            self._owed = [[0] * len(self.sentences) for _ in range(self.layers)]
            self.states = x.new_zeros(x.size(0), self.capacity, x.size(2))

    def pending(
        self, layer: int, sentences: list[int], rows: Optional[Tensor]
    ) -> Optional[Pending]:
        """Earlier positions that ``layer`` (0-based) owes to ``sentences``; None if none. From now
        on they are paid.

        sentences: original numbers of the sentences still running; rows: their hypotheses.
        """
        owed = self._owed[layer]
        owing = [owed[s] for s in sentences]
        union = reduce(or_, owing, 0)
        if not union:
            return None
        assert self.states is not None
        device = self.states.device
        for s in sentences:
            owed[s] = 0
        found = [p for p in range(union.bit_length()) if union >> p & 1]
        positions = from_host(found, device)
        if all(of == union for of in owing):
            return Pending(positions, None)
        which = from_host([[of >> p & 1 for p in found] for of in owing], device)
        which = which.bool().repeat_interleave(self.group, dim=0).unsqueeze(-1)
        return Pending(positions, which)

    def end_step(self, ran: dict[int, int]) -> None:
        """Closes a step: layers run by the newest position of each sentence (original number)."""
        for sentence, layers in ran.items():
            for owed in self._owed[layers:]:
                owed[sentence] |= 1 << self.length
        self.length += 1

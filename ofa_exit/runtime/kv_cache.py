"""What the decoder remembers between steps, and how skipped layers get their keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Optional

import torch
from torch import Tensor

from ofa_exit.runtime.rows import from_host, surviving_sentences

KV_MODES = ("propagate", "recompute", "copy")
"""How the K/V cache of skipped layers is filled.

* propagate: later tokens project the state at exit by the skipped layer's own weights (CALM's
  state propagation). Exited rows of an active sentence do the same at once.
* recompute: the token's own state runs through the skipped layer once a later token needs it, so
  that K/V are those of the full stack (FREE's parallel decoding).
* copy: after each step the whole self- and cross-attention cache of the exit layer is copied into
  every deeper layer, as MuE's released code does. Worse than both.
"""


def check_kv_mode(mode: str, heads_cache_kv: bool) -> None:
    """Raise ValueError for an unknown K/V mode, or one that cannot serve the heads in use.

    Args:
        heads_cache_kv: whether heads that the policy uses cache K/V of their own.
    """
    if mode not in KV_MODES:
        raise ValueError(f"--exit-kv {mode!r} is none of {', '.join(KV_MODES)}")
    if mode == "copy" and heads_cache_kv:
        raise ValueError(
            "--exit-kv copy is that of MuE's released code, whose heads have no K/V: use propagate "
            "or recompute with these --exit-layers"
        )


Project = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class MissingKV:
    """Earlier positions of some sentences whose K/V a layer lacks.

    Attributes:
        positions: Long [Q], the union over the sentences.
        mask: Bool [R, Q, 1], True where the row's sentence lacks that position; None where all do.
    """

    positions: Tensor
    mask: Optional[Tensor]


class KVCache:
    """Self-attention K/V of N hypotheses, and cross-attention K/V of their S sentences.

    Hypotheses of a sentence sit side by side and share everything that depends on the sentence
    alone. All of them run the same layers, so one number per sentence says how deep the K/V of a
    position go, and beam reordering does not change it. Finished sentences only change which
    sentences are left: ``stale`` until their numbers are read together with the next gate.

    A slot is a decoder layer, from 0. Heads that cache K/V have the slots after the layers'.

    Attributes:
        kv: [slots, 2, N, heads, capacity, C / heads].
        states: [N, capacity, C], for every position the state that its missing layers start from;
            allocated when the first gate is met.
        sentences: numbers, in the batch that was encoded, of the sentences present.
    """

    def __init__(self, slots: int, group: int, max_length: int) -> None:
        self.slots = slots
        self.group = group
        self.max_length = max_length
        self.length = 0
        self.deepest = 0  # slots that anything was stored for
        self.kv: Optional[Tensor] = None
        self.cross: list[Optional[tuple[Tensor, Tensor]]] = [None] * slots
        # Sentences whose cross-attention K/V of a slot exist; None: all.
        self._cross_known: list[Optional[set[int]]] = [None] * slots
        self.cross_bias: Optional[Tensor] = None
        self.states: Optional[Tensor] = None
        self.sentences: list[int] = []
        self.stale = False
        # Per slot and sentence: the positions whose K/V it lacks, as bits.
        self._missing: list[list[int]] = []

    @property
    def capacity(self) -> int:
        return 0 if self.kv is None else self.kv.size(4)

    # ------------------------------------------------------------------ self-attention

    def reserve(
        self, rows: int, heads: int, head_dim: int, like: Tensor, positions: int = 1
    ) -> None:
        """Make room for more positions; capacity doubles when it runs out."""
        capacity, needed = self.capacity, self.length + positions
        if needed <= capacity:
            return
        room = min(max(16, 2 * capacity, needed), self.max_length)
        self.cross_bias = None  # made for the old capacity
        grown = like.new_zeros(self.slots, 2, rows, heads, room, head_dim)
        if self.kv is not None:
            grown[..., :capacity, :] = self.kv
        self.kv = grown
        if self.states is not None:
            states = self.states.new_zeros(rows, room, self.states.size(2))
            states[:, :capacity] = self.states
            self.states = states

    def store(
        self,
        slot: int,
        rows: Optional[Tensor],
        positions: Tensor | slice,
        key: Tensor,
        value: Tensor,
        mask: Optional[Tensor] = None,
    ) -> None:
        """Write K/V [R, heads, Q, C / heads] of ``rows`` (None: all) at ``positions`` [Q].

        Args:
            mask: Bool [R, Q, 1], False where what is stored already stays.
        """
        assert self.kv is not None
        key, value = key.to(self.kv.dtype), value.to(self.kv.dtype)  # autocast's may differ
        self.deepest = max(self.deepest, slot + 1)
        for stored, new in zip(self.kv[slot], (key, value)):
            if rows is None:
                if mask is not None:
                    new = torch.where(mask.unsqueeze(1), new, stored[:, :, positions])
                stored[:, :, positions] = new
            elif isinstance(positions, slice):
                stored[rows, :, positions] = new
            else:  # two index tensors around a slice come first: [R, Q, heads, d]
                new, index = new.transpose(1, 2), (rows[:, None], slice(None), positions)
                stored[index] = (
                    new if mask is None else torch.where(mask.unsqueeze(-1), new, stored[index])
                )

    def load(self, slot: int, rows: Optional[Tensor]) -> tuple[Tensor, Tensor]:
        """Return K/V of ``rows`` (None: all), [R, heads, capacity, C / heads] each.

        They include positions to come, which the bias hides: the shapes of a step stay those of
        the last, and a few keys more cost little compared with a layer's weights.
        """
        assert self.kv is not None
        key, value = self.kv[slot]
        if rows is None:
            return key, value
        return key.index_select(0, rows), value.index_select(0, rows)

    # ------------------------------------------------------------------ cross-attention

    def cross_kv(
        self, slot: int, states: Tensor, project: Project, sentences: Optional[list[int]]
    ) -> tuple[tuple[Tensor, Tensor], list[int]]:
        """Return cross-attention K/V of all S sentences present, [S, heads, T, C / heads] each.

        Args:
            states: the encoder's, [S, T, C].
            project: makes K/V of states.
            sentences: places of those whose K/V are used now (None: all). What they lack is made.

        Returns:
            The K/V, and the places of the sentences whose K/V were made now.
        """
        stored = self.cross[slot]
        wanted = list(range(states.size(0))) if sentences is None else sentences
        if stored is None:
            if sentences is None:
                # Contiguous per head: every step reads all of it, in 0.6 of the time this way.
                key, value = project(states)
                stored = self.cross[slot] = key.contiguous(), value.contiguous()
                return stored, wanted
            assert self.kv is not None
            shape = (states.size(0), self.kv.size(3), states.size(1), self.kv.size(5))
            stored = self.cross[slot] = states.new_empty(shape), states.new_empty(shape)
            self._cross_known[slot] = set()
        known = self._cross_known[slot]
        if known is None:
            return stored, []
        missing = [place for place in wanted if self.sentences[place] not in known]
        if missing:
            known.update(self.sentences[place] for place in missing)
            index = from_host(missing, states.device)
            for kv, new in zip(stored, project(states[index])):
                kv[index] = new.to(kv.dtype)
        return stored, missing

    # ------------------------------------------------------------------ beam search

    def reorder(self, new_order: Tensor) -> None:
        """Follow beam search; see ``EncoderOut.reordered`` for the contract.

        Args:
            new_order: Long [N'], the row that each new row was.
        """
        assert self.kv is not None
        if new_order.numel() == self.kv.size(2):
            if self.group > 1:
                # [slots stored, 2, N, heads, positions so far, C / heads]
                used = self.kv[: self.deepest, ..., : self.length, :]
                used.copy_(used.index_select(2, new_order))
                if self.states is not None:
                    seen = self.states[:, : self.length]  # [N, positions so far, C]
                    seen.copy_(seen.index_select(0, new_order))
            return
        self.kv = self.kv.index_select(2, new_order)
        if self.states is not None:
            self.states = self.states.index_select(0, new_order)
        surviving = surviving_sentences(new_order, self.group)  # Long [S']
        for slot, kv in enumerate(self.cross):  # one after the other: they are large
            if kv is not None:
                self.cross[slot] = (
                    kv[0].index_select(0, surviving),
                    kv[1].index_select(0, surviving),
                )
        if self.cross_bias is not None:
            self.cross_bias = self.cross_bias.index_select(0, surviving)
        self.stale = True

    # ------------------------------------------------------------------ skipped layers

    def begin_step(self, x: Tensor, keep_states: bool) -> None:
        """Prepare the record of missing K/V for one more position of x [N, 1, C].

        Args:
            keep_states: whether missing K/V are made from states later on.
        """
        if not self._missing:
            self.sentences = list(range(x.size(0) // self.group))
            self._missing = [[0] * len(self.sentences) for _ in range(self.slots)]
            if keep_states:
                self.states = x.new_zeros(x.size(0), self.capacity, x.size(2))

    def set_sentences(self, sentences: list[int]) -> None:
        """Take over which sentences are left after beam search dropped the finished ones."""
        self.sentences, self.stale = sentences, False

    def missing(self, slot: int, sentences: list[int]) -> Optional[MissingKV]:
        """Return the earlier positions whose K/V a layer lacks, and count them as filled.

        Args:
            slot: decoder layer, from 0.
            sentences: places of the active sentences.
        """
        bits_of = self._missing[slot]
        numbers = [self.sentences[place] for place in sentences]
        each = [bits_of[number] for number in numbers]
        union = reduce(or_, each, 0)
        if not union:
            return None
        assert self.states is not None
        device = self.states.device
        for number in numbers:
            bits_of[number] = 0
        found = [p for p in range(union.bit_length()) if union >> p & 1]
        positions = from_host(found, device)  # Long [Q]
        if all(bits == union for bits in each):
            return MissingKV(positions, None)
        mask = from_host([[bits >> p & 1 for p in found] for bits in each], device)  # [A, Q]
        return MissingKV(positions, mask.bool().repeat_interleave(self.group, dim=0).unsqueeze(-1))

    def states_at(self, missing: MissingKV, rows: Optional[Tensor]) -> Tensor:
        """Return the states [R, Q, C] that the missing K/V of ``rows`` are made from."""
        assert self.states is not None
        if rows is None:
            return self.states[:, missing.positions]
        return self.states[rows[:, None], missing.positions]

    def backfill(
        self,
        slot: int,
        rows: Optional[Tensor],
        missing: MissingKV,
        states: Tensor,
        project: Project,
    ) -> None:
        """Fill the missing K/V of a slot, projected from ``states`` [R, Q, C]."""
        key, value = project(states)
        self.store(slot, rows, missing.positions, key, value, missing.mask)

    def end_step(self, layers_run: dict[int, int]) -> None:
        """Close a step.

        Args:
            layers_run: by sentence number, the layers that its newest position went through.
        """
        for number, layers in layers_run.items():
            for bits_of in self._missing[layers:]:
                bits_of[number] |= 1 << self.length
        self.length += 1

    def end_step_by_copy(self, layers_run: dict[int, int], layers: int) -> None:
        """Close a step: copy the cache of each sentence's exit layer into every deeper layer.

        Differs from MuE's released code, where one exit holds for the whole batch: here each
        sentence exits by itself. With one sentence and one hypothesis both are the same.
        """
        assert self.kv is not None
        self.length += 1
        for place, number in enumerate(self.sentences):
            run = layers_run[number]
            rows = slice(place * self.group, (place + 1) * self.group)
            source = self.kv[run - 1, :, rows, :, : self.length]  # [2, group, heads, L, d]
            self.kv[run:layers, :, rows, :, : self.length] = source
            cross = self.cross[run - 1]
            assert cross is not None
            for slot in range(run, layers):
                stored, known = self.cross[slot], self._cross_known[slot]
                if stored is None:
                    stored = torch.empty_like(cross[0]), torch.empty_like(cross[1])
                    known = set()
                    self.cross[slot], self._cross_known[slot] = stored, known
                for kv, exited in zip(stored, cross):
                    kv[place] = exited[place]
                if known is not None:
                    known.add(number)
            if run < layers:
                self.deepest = max(self.deepest, layers)

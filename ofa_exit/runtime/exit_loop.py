"""The decoder's layers with a gate behind each: who leaves, and what skipped layers still owe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor

from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.layers import DecoderLayer
from ofa_exit.models.layers import RowSlices as Runs
from ofa_exit.policies.base import Gate, GateInput
from ofa_exit.runtime.kv_cache import DecoderCache, Pending
from ofa_exit.runtime.rows import from_host, rows_of, stretches, to_host
from ofa_exit.runtime.token_tree import TokenTree

if TYPE_CHECKING:
    from ofa_exit.models.decoder import Decoder

STRETCH = 2**15
"""Numbers copied in about the time that one more attention over few rows takes on a CPU."""


def run_with_exits(
    decoder: Decoder,
    x: Tensor,
    prev_output_tokens: Tensor,
    encoder_out: EncoderOut,
    gate: Gate,
    cache: Optional[DecoderCache],
    tree: Optional[TokenTree] = None,
    exits: Sequence[int] = (),
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """States at exit [N, P, C] of x [N, P, C], the embedded last P of L positions, the layers that
    each needed, Long [N, P], and by name what else ``DecoderStep`` records of them, Long [N].

    After each layer the gate is asked about every hypothesis and position; what leaves is frozen
    (MuE Algorithm 1, lines 13-19). A layer runs for a sentence while any of its hypotheses is
    active, the others riding along unchanged; sentences whose hypotheses have all left are taken
    out of the computation once that pays (``_Run.leave_some``). Of a tree, only the tokens that are
    asked for keep a sentence running.

    Layers that a token skips still owe its keys and values to later tokens:

    * propagate (default): they are projected from the token's frozen state (CALM's state
      propagation). Within a sentence that still runs, the frozen state passes through the layer's
      projections together with the active ones; for a sentence that has left, the projection
      happens when a later token first reaches the layer.
    * recompute (``decoder.recompute``): the token's own state goes on through the layer, so that
      K/V are those of the full stack (FREE's parallel decoding); its output stays the frozen one.

    Differs from the paper, whose released code leaves a hole in the cache.

    exits: the layers whose exits are run (BLIPEE Section 3.5): a token that leaves there goes out
    as the exit's features, and what it owes to later tokens comes from its state in the backbone.
    """
    run = _Run(decoder, x, prev_output_tokens, encoder_out, cache, tree, exits)
    last = len(decoder.layers)
    for number in range(1, last + 1):
        before, after = run.layer(number - 1)
        if number == last:
            run.leave_all(after)
            break
        features = run.exit(number, after) if number in exits else None
        answer = gate(run.seen(before, after, number, features))
        if answer is True:
            run.leave_all(after, features)
            break
        if answer is False:
            run.stay(after)
        elif not run.leave_some(answer, after, features):
            break
    run.end_step()
    return run.output, run.depth, run.counts()


class _Run:
    """The state of one pass: all N hypotheses, and the rows of sentences still running.

    Full size: ``output`` [N, P, C], ``depth`` [N, P]. Running rows only: ``running`` [R, P, C] the
    states that enter the next layer, ``frozen`` [R, P, C] the states at exit so far, ``left``
    [R, P, C] what goes out of those that left, where exits are used, ``exited`` Bool [R, P],
    ``needed`` Long [R, P] the layers of those that have. ``anyone``: whether the host knows of any
    that has left, or has not looked. ``rows`` Long [R] names the rows; None means all.

    ``places``: the sentences that run, among those present; ``alive`` the same as a tensor, None
    for all. ``runs``: them and their rows as stretches, where keys and values are read in place.
    ``totals``: what every running row went through; ``counted``: the same of each sentence that
    has left. ``owing``: what the last layer made up, and the states [R, Q, C] that enter the next
    (the same, unless recomputed).
    """

    def __init__(
        self,
        decoder: Decoder,
        x: Tensor,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        cache: Optional[DecoderCache],
        tree: Optional[TokenTree],
        exits: Sequence[int],
    ) -> None:
        length, self.positions = prev_output_tokens.size(1), x.size(1)
        start = length - self.positions
        self.decoder, self.encoder_out, self.cache = decoder, encoder_out, cache
        self.group = encoder_out.group or 1
        self.tree = tree
        self.steps = torch.arange(start, length, device=x.device)
        # Where the positions stand among those that the biases are made for.
        self.place = slice(None) if cache is None else slice(start, length)
        self.self_biases, self.cross_bias = decoder.biases(length, encoder_out, cache, tree)
        self.output = x.clone()
        self.depth = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        self.needed = torch.zeros_like(self.depth)
        self.totals = dict.fromkeys(("ran", "repaid", "exits", "exits_repaid"), 0)
        self.places = list(range(x.size(0) // self.group))
        self.counted = {name: [0] * len(self.places) for name in self.totals}
        self.running = self.frozen = x
        self.exits = list(exits)
        self.left = x if exits else None
        self.owing: Optional[tuple[Pending, Tensor]] = None
        # Padding behind a shorter sequence of a batch wants no layers.
        self.exited = (
            prev_output_tokens.eq(decoder.padding_idx)
            if cache is None
            else torch.zeros_like(self.depth, dtype=torch.bool)
        )
        self.anyone = cache is None
        self.rows: Optional[Tensor] = None
        self.alive: Optional[Tensor] = None
        self.runs: tuple[Runs, Runs] = (None, None)
        self.limits = encoder_out.limits(x.size(0), length)
        if cache is not None:
            cache.begin_step(x)

    def of_rows(self, values: Tensor) -> Tensor:
        """The running rows of values [N, …]."""
        return values if self.rows is None else values[self.rows]

    def seen(
        self, before: Tensor, after: Tensor, layer: int, features: Optional[Tensor]
    ) -> GateInput:
        """What the gate is shown after ``layer``, where an exit made ``features``."""
        steps = self.steps if self.tree is None else self.of_rows(self.tree.depth)
        seen = GateInput(before, after, layer, step=steps, step_limit=self.of_rows(self.limits))
        if features is not None:
            words, allowed = None, None
            if self.tree is not None and self.tree.allowed is not None:
                words, allowed = self.tree.words, self.of_rows(self.tree.allowed)
            seen.exit_scores = partial(self.decoder.exit_scores, features, words, allowed)
        return seen

    def beside(
        self, index: int, biased_as: int, at: Tensor | slice
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """For the running rows at positions ``at``: self-attention bias of layer ``biased_as``,
        cross-attention K/V of layer or exit ``index``, and their bias. Both count from 0, used
        exits behind layers."""
        states = self.encoder_out.states
        self_bias, cross_bias = self.self_biases[biased_as][:, :, at], self.cross_bias[:, :, at]
        if self.alive is None:
            return self_bias, self.decoder.cross_kv(index, states, self.cache), cross_bias
        if self.tree is None:
            cross_bias = cross_bias[self.alive]
        else:
            self_bias, cross_bias = self.of_rows(self_bias), self.of_rows(cross_bias)
        if self.cache is None:
            states = states[self.alive]
        key, value = self.decoder.cross_kv(index, states, self.cache, self.places)
        if self.cache is not None and self.runs[1] is None:
            key, value = key[self.alive], value[self.alive]
        return self_bias, (key, value), cross_bias

    @property
    def sentences(self) -> list[int]:
        """Original numbers of the running sentences."""
        assert self.cache is not None
        return [self.cache.sentences[place] for place in self.places]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Runs a layer; returns the running states before and after it.

        At the first layer nothing is owed, as every token runs at least one layer.
        """
        decoder, cache, x = self.decoder, self.cache, self.running
        layer = decoder.layer(index)
        at: Tensor | slice = self.place
        self.owing = None
        owed, recomputed = None, 0
        if cache is not None and index > 0 and cache.length > 0:
            pending = cache.pending(index, self.sentences, self.rows)
            if pending is not None:
                assert cache.states is not None
                positions = pending.positions
                if self.rows is None:
                    states = cache.states[:, positions]
                else:
                    states = cache.states[self.rows[:, None], positions]
                self.owing = (pending, states)
                self.totals["repaid"] += positions.numel()
                if decoder.recompute:
                    recomputed = positions.numel()
                    at = torch.cat([positions, self.steps])
                    x = torch.cat([states, x], dim=1)
                    owed = pending.owed
                    if owed is not None:
                        owed = torch.cat([owed, owed.new_ones(owed.size(0), 1, 1)], dim=1)
                else:
                    self.settle(index, layer, pending, states)

        extend = None
        if cache is not None:

            def extend(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
                cache.store(index, self.rows, at, key, value, owed)
                return self.load(index)

        self_bias, cross_kv, cross_bias = self.beside(index, index, at)
        after = layer(x, self_bias, cross_kv, cross_bias, extend, self.runs)
        if recomputed:
            assert cache is not None and cache.states is not None
            rows = slice(None) if self.rows is None else self.rows[:, None]
            assert pending is not None
            done = pending.positions
            deeper = after[:, :recomputed]
            if owed is not None:
                deeper = torch.where(owed[:, :recomputed], deeper, states)
            cache.states[rows, done] = deeper
            self.owing = (pending, deeper)
            after = after[:, recomputed:]
        self.totals["ran"] += 1
        return self.running, after

    def load(self, slot: int) -> tuple[Tensor, Tensor]:
        """Self-attention K/V that the running rows see, or of all rows where ``runs`` tell."""
        assert self.cache is not None
        return self.cache.load(slot, self.rows if self.runs[0] is None else None)

    def exit(self, number: int, after: Tensor) -> Tensor:
        """What the exit behind layer ``number``, from 1, makes of the running rows, [R, P, C],
        before the norm; ``after``: what the layer has just returned.

        Exits keep keys and values of their own, behind those of the layers. An exit runs whenever
        its layer does, hence what it owes for earlier positions is what that layer just made up,
        from the same states: the backbone's at exit, or the recomputed ones.
        """
        decoder, cache = self.decoder, self.cache
        slot = len(decoder.layers) + self.exits.index(number)
        layer = decoder.layer(slot)
        self_bias, cross_kv, cross_bias = self.beside(slot, number, self.place)
        # Those who left ride along, as in go_on.
        x = after if decoder.recompute else self.kept(after)
        self.totals["exits"] += 1
        if cache is None:
            return layer(x, self_bias, cross_kv, cross_bias)
        if self.owing is not None:
            pending, states = self.owing
            self.settle(slot, layer, pending, states)
            self.totals["exits_repaid"] += pending.positions.numel()

        def extend(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            cache.store(slot, self.rows, self.place, key, value)
            return self.load(slot)

        return layer(x, self_bias, cross_kv, cross_bias, extend, self.runs)

    def settle(self, slot: int, layer: DecoderLayer, pending: Pending, states: Tensor) -> None:
        """Stores the keys and values that ``layer`` owes, projected from ``states`` [R, Q, C]."""
        assert self.cache is not None
        key, value = layer.self_kv(states)
        self.cache.store(slot, self.rows, pending.positions, key, value, pending.owed)

    def kept(self, after: Tensor) -> Tensor:
        """``after`` of those who go on, the state at exit of those who have left."""
        return torch.where(self.exited.unsqueeze(-1), self.frozen, after) if self.anyone else after

    def go_on(self, after: Tensor) -> None:
        """Takes what a layer returned; hypotheses that have left keep their state at exit."""
        self.frozen = self.kept(after)
        self.running = after if self.decoder.recompute else self.frozen

    def stay(self, after: Tensor) -> None:
        """Everybody goes on; reads back only who is left after beam search dropped sentences."""
        self.go_on(after)
        if self.cache is not None and self.cache.stale:
            self._rename(to_host(self.encoder_out.sentences))

    def _leave(self, leaving: Tensor, features: Optional[Tensor]) -> None:
        """Marks who has left, behind which layer, and as what where exits are used; after
        ``go_on``."""
        fresh = leaving & ~self.exited
        self.needed = self.needed.masked_fill(fresh, self.totals["ran"])
        if self.left is not None:
            left = self.frozen if features is None else features
            self.left = torch.where(fresh.unsqueeze(-1), left, self.left)
        self.exited = self.exited | leaving

    def leave_all(self, after: Tensor, features: Optional[Tensor] = None) -> None:
        self.go_on(after)
        self._leave(torch.ones_like(self.exited), features)
        self._write(slice(None), self.places)

    def leave_some(self, leaving: Tensor, after: Tensor, features: Optional[Tensor] = None) -> bool:
        """Freezes what the gate let go; False if nothing is left to run.

        Sentences that have left go out of the computation at once where the keys and values of
        those that stay are yet to be made or are read in place (``_runs``), and otherwise once at
        most half stay: to copy them costs about what riding along costs. The one host read of a
        layer: who has left and, after beam search dropped finished sentences, which are left.
        """
        self.go_on(after)
        done = self.exited | leaving
        if self.tree is not None:
            done = done | ~self.of_rows(self.tree.asked)
        cache, each = self.cache, self.group * self.positions
        if cache is not None and cache.stale:
            flags = to_host(torch.cat([done.flatten().long(), self.encoder_out.sentences]))
            self._rename(flags[done.numel() :])
            flags = flags[: done.numel()]
        else:
            flags = to_host(done.flatten())
        if not any(flags):
            return True
        self.anyone = True
        self._leave(leaving, features)
        active = [not all(flags[first : first + each]) for first in range(0, len(flags), each)]
        staying = [i for i, goes_on in enumerate(active) if goes_on]
        if not staying:
            self._write(slice(None), self.places)
            return False
        if len(staying) == len(active):
            return True
        places = [self.places[i] for i in staying]
        runs = self._runs(places)
        if cache is not None and runs[0] is None and len(staying) > len(active) / 2:
            return True
        gone = [i for i, goes_on in enumerate(active) if not goes_on]
        device = self.output.device
        self._write(rows_of(gone, self.group, device), [self.places[i] for i in gone])
        rows = rows_of(staying, self.group, device)
        self.rows = rows if self.rows is None else self.rows[rows]
        self.places, self.runs = places, runs
        self.alive = from_host(places, device)
        self.running, self.frozen = self.running[rows], self.frozen[rows]
        self.exited, self.needed = self.exited[rows], self.needed[rows]
        if self.left is not None:
            self.left = self.left[rows]
        return True

    def _runs(self, places: list[int]) -> tuple[Runs, Runs]:
        """The rows and the sentences at ``places`` as stretches, whose keys and values are then
        attended to where they are; None for both where copying them together costs less."""
        states = self.encoder_out.states
        if self.cache is None or not states.is_cpu or self.decoder.gathers:
            return None, None
        found = stretches(places)
        if len(found) * STRETCH > len(places) * states[0].numel():
            return None, None
        return [slice(self.group * s.start, self.group * s.stop) for s in found], found

    def _rename(self, names: list[int]) -> None:
        """Takes over which sentences are left after beam search dropped the finished ones."""
        assert self.cache is not None
        self.cache.sentences = names
        self.cache.stale = False

    def _write(self, which: slice | Tensor, places: list[int]) -> None:
        """Hands the states of running rows ``which`` out: they leave the computation now, with
        their sentences' ``places``."""
        for name, total in self.totals.items():
            for place in places:
                self.counted[name][place] = total
        rows = which if self.rows is None else self.rows[which]
        needed = self.needed[which]
        if self.tree is not None:  # what nobody asked for went as far as its sentence
            needed = needed.masked_fill(~self.exited[which], self.totals["ran"])
        self.depth[rows] = needed
        self.output[rows] = (self.frozen if self.left is None else self.left)[which]
        if self.cache is not None:
            assert self.cache.states is not None
            self.cache.states[rows, self.cache.length] = self.running[which, 0]

    def end_step(self) -> None:
        if self.cache is not None:
            # Where nobody has read the names of those left, all left together behind layer 1.
            ran = self.counted["ran"]
            if self.cache.stale:
                ran = [1] * len(self.cache.sentences)
            self.cache.end_step(dict(zip(self.cache.sentences, ran, strict=True)))

    def counts(self) -> dict[str, Tensor]:
        """What every row went through, Long [N] each; see ``DecoderStep``."""
        counted = torch.tensor(list(self.counted.values()))  # the host knows: no device waits
        return dict(zip(self.counted, counted.repeat_interleave(self.group, dim=1)))

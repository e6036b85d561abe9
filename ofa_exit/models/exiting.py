"""The decoder's layers with a gate behind each: who leaves, and what skipped layers still owe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor

from ofa_exit.models.cache import DecoderCache, Pending
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.layers import DecoderLayer
from ofa_exit.models.rows import to_host
from ofa_exit.models.trees import TokenTree
from ofa_exit.policies.base import Gate, GateInput

if TYPE_CHECKING:
    from ofa_exit.models.decoder import Decoder


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
    if cache is not None:
        cache.end_step(run.reached)
    return run.output, run.depth, run.counts


class _Run:
    """The state of one pass: all N hypotheses, and the rows of sentences still running.

    Full size: ``output`` [N, P, C], ``depth`` [N, P], ``counts`` [N] each. Running rows only:
    ``running`` [R, P, C] the states that enter the next layer, ``frozen`` [R, P, C] the states at
    exit so far, ``left`` [R, P, C] what goes out of those that left, where exits are used,
    ``exited`` Bool [R, P]. ``rows`` Long [R] names them; None means all. ``owing``: what the last
    layer made up, and the states [R, Q, C] that enter the next (the same, unless recomputed).
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
        self.counts = {
            name: torch.zeros_like(self.depth[:, 0])
            for name in ("ran", "repaid", "exits", "exits_repaid")
        }
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
        self.rows: Optional[Tensor] = None
        self.alive: Optional[Tensor] = None  # running sentences among the present ones
        self.sentences: list[int] = []
        self.reached: dict[int, int] = {}
        self.limits = _limits(encoder_out, x.size(0), length, x.device)
        if cache is not None:
            cache.begin_step(x)
            self.sentences = list(cache.sentences)

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
            seen.exit_logits = partial(self.decoder.exit_logits, features, words, allowed)
        return seen

    def beside(
        self, index: int, biased_as: int, at: Tensor | slice
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """For the running rows at positions ``at``: self-attention bias of layer ``biased_as``,
        cross-attention K/V of layer or exit ``index``, and their bias. Both count from 0, used
        exits behind layers."""
        cross_kv = self.decoder.cross_kv(index, self.encoder_out, self.cache)
        self_bias, cross_bias = self.self_biases[biased_as][:, :, at], self.cross_bias[:, :, at]
        if self.alive is not None:
            cross_kv = (cross_kv[0][self.alive], cross_kv[1][self.alive])
            if self.tree is None:
                cross_bias = cross_bias[self.alive]
            else:
                self_bias, cross_bias = self.of_rows(self_bias), self.of_rows(cross_bias)
        return self_bias, cross_kv, cross_bias

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Runs a layer; returns the running states before and after it.

        At the first layer nothing is owed, as every token runs at least one layer.
        """
        decoder, cache, x = self.decoder, self.cache, self.running
        layer = decoder.layer(index)
        at = self.steps
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
                self.count("repaid", positions.numel())
                if decoder.recompute:
                    recomputed = positions.numel()
                    at = torch.cat([positions, at])
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
                return cache.load(index, self.rows)

        self_bias, cross_kv, cross_bias = self.beside(
            index, index, at if recomputed else self.place
        )
        after = layer(x, self_bias, cross_kv, cross_bias, extend)
        if recomputed:
            assert cache is not None and cache.states is not None
            rows = slice(None) if self.rows is None else self.rows[:, None]
            done = at[:recomputed]
            deeper = after[:, :recomputed]
            if owed is not None:
                deeper = torch.where(owed[:, :recomputed], deeper, states)
            cache.states[rows, done] = deeper
            assert pending is not None
            self.owing = (pending, deeper)
            after = after[:, recomputed:]
        for sentence in self.sentences:
            self.reached[sentence] = index + 1
        needed = (~self.exited).long()
        if self.rows is None:
            self.depth += needed
        else:
            self.depth[self.rows] += needed
        self.count("ran", 1)
        return self.running, after

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
        x = after
        if not decoder.recompute:
            x = torch.where(self.exited.unsqueeze(-1), self.frozen, after)
        self.count("exits", 1)
        if cache is None:
            return layer(x, self_bias, cross_kv, cross_bias)
        if self.owing is not None:
            pending, states = self.owing
            self.settle(slot, layer, pending, states)
            self.count("exits_repaid", pending.positions.numel())

        def extend(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            cache.store(slot, self.rows, self.steps, key, value)
            return cache.load(slot, self.rows)

        return layer(x, self_bias, cross_kv, cross_bias, extend)

    def settle(self, slot: int, layer: DecoderLayer, pending: Pending, states: Tensor) -> None:
        """Stores the keys and values that ``layer`` owes, projected from ``states`` [R, Q, C]."""
        assert self.cache is not None
        key, value = layer.self_kv(states)
        self.cache.store(slot, self.rows, pending.positions, key, value, pending.owed)

    def count(self, name: str, more: int) -> None:
        """Adds to the counts of the running rows."""
        if self.rows is None:
            self.counts[name] += more
        else:
            self.counts[name][self.rows] += more

    def go_on(self, after: Tensor) -> None:
        """Takes what a layer returned; hypotheses that have left keep their state at exit."""
        self.frozen = torch.where(self.exited.unsqueeze(-1), self.frozen, after)
        self.running = after if self.decoder.recompute else self.frozen

    def stay(self, after: Tensor) -> None:
        """Everybody goes on; reads back only who is left after beam search dropped sentences."""
        self.go_on(after)
        if self.cache is not None and self.cache.stale:
            self._rename(to_host(self.encoder_out.sentences))

    def _leave(self, leaving: Tensor, features: Optional[Tensor]) -> None:
        """Marks who has left, and as what where exits are used; after ``go_on``."""
        if self.left is not None:
            fresh = (leaving & ~self.exited).unsqueeze(-1)
            self.left = torch.where(fresh, self.frozen if features is None else features, self.left)
        self.exited = self.exited | leaving

    def leave_all(self, after: Tensor, features: Optional[Tensor] = None) -> None:
        self.go_on(after)
        if self.left is not None:
            self._leave(torch.ones_like(self.exited), features)
        self._write(slice(None))

    def leave_some(self, leaving: Tensor, after: Tensor, features: Optional[Tensor] = None) -> bool:
        """Freezes what the gate let go; False if nothing is left to run.

        Sentences that have left go out of the computation once at most half of those present stay:
        each that stays has its cross-attention K/V copied, which costs about what a layer of one
        that rides along costs. The one host read of a layer: which sentences still run and, after
        beam search dropped finished ones, which those are.
        """
        self.go_on(after)
        self._leave(leaving, features)
        wanted = ~self.exited
        if self.tree is not None:
            wanted = wanted & self.of_rows(self.tree.asked)
        active = wanted.view(-1, self.group * self.positions).any(dim=1)
        cache = self.cache
        if cache is not None and cache.stale:
            flags, names = to_host(torch.stack([active.long(), self.encoder_out.sentences]))
            self._rename(names)
        else:
            flags = to_host(active)
        staying = [i for i, flag in enumerate(flags) if flag]
        if 2 * len(staying) > len(flags):
            return True  # too few have left to pay for copying the others' keys and values
        leaving_rows = self._rows_of([i for i, flag in enumerate(flags) if not flag])
        self._write(leaving_rows)
        if not staying:
            return False
        rows = self._rows_of(staying)
        self.rows = rows if self.rows is None else self.rows[rows]
        kept = torch.tensor(staying, device=rows.device)
        self.alive = kept if self.alive is None else self.alive[kept]
        self.running, self.frozen = self.running[rows], self.frozen[rows]
        self.exited = self.exited[rows]
        if self.left is not None:
            self.left = self.left[rows]
        if cache is not None:
            self.sentences = [self.sentences[i] for i in staying]
        return True

    def _rename(self, names: list[int]) -> None:
        """Takes over which sentences are left after beam search dropped the finished ones."""
        assert self.cache is not None
        self.sentences = self.cache.sentences = names
        self.reached = dict.fromkeys(names, 1)
        self.cache.stale = False

    def _rows_of(self, sentences: list[int]) -> Tensor:
        """Rows, among those running, of sentences given by their place among the running ones."""
        first = torch.tensor(sentences, device=self.output.device)[:, None] * self.group
        return (first + torch.arange(self.group, device=self.output.device)).flatten()

    def _write(self, which: slice | Tensor) -> None:
        """Hands the states of running rows ``which`` out: they leave the computation now."""
        rows = which if self.rows is None else self.rows[which]
        self.output[rows] = (self.frozen if self.left is None else self.left)[which]
        if self.cache is not None:
            assert self.cache.states is not None
            self.cache.states[rows, self.cache.length] = self.running[which, 0]


def _limits(encoder_out: EncoderOut, rows: int, length: int, device: torch.device) -> Tensor:
    """Step limit of every hypothesis, [N, 1]; the sequence's own length where none was given."""
    if encoder_out.step_limit is None:
        return torch.full((rows, 1), length, device=device)
    return encoder_out.step_limit.repeat_interleave(encoder_out.group or 1).unsqueeze(1)

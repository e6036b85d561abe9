"""One call of the decoder under a gate: what the exit loop drives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.models.cpu import row_slices
from ofa_exit.models.decoder_stack import DecoderStack
from ofa_exit.models.decoder_work import WorkCounter, full_work
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.word_scores import StepScores
from ofa_exit.policies.base import ExitPolicy, GateInput
from ofa_exit.runtime.active_rows import ActiveRows
from ofa_exit.runtime.exit_loop import ExitState, LayerPass
from ofa_exit.runtime.kv_cache import KVCache, MissingKV
from ofa_exit.runtime.rows import to_host
from ofa_exit.runtime.token_tree import TokenTree
from ofa_exit.runtime.trace import DecoderStep


class DecoderPass(LayerPass):
    """The last P of L positions of N hypotheses, layer by layer.

    A layer runs for a sentence while any of its hypotheses is active; the others ride along
    unchanged. Of a token tree, only the tokens that are asked for keep a sentence active.

    Layers that a token skips lack its keys and values when a later token reaches them. They are
    filled then, from ``KVCache.states``, in one of the modes of ``kv_cache.KV_MODES``. Without a
    cache whole sequences run at once and nothing is missing later.
    """

    def __init__(
        self,
        decoder: DecoderStack,
        policy: ExitPolicy,
        kv_mode: str,
        x: Tensor,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        cache: Optional[KVCache],
        tree: Optional[TokenTree],
    ) -> None:
        """Prepare a pass over x [N, P, C], the embedded last positions of Long [N, L] tokens."""
        length, positions = prev_output_tokens.size(1), x.size(1)
        start = length - positions
        self.decoder = decoder
        self.depth = len(decoder.layers)
        self.encoder_out, self.cache, self.tree = encoder_out, cache, tree
        self.tokens, self.positions = prev_output_tokens, positions
        self.mode = kv_mode
        self.rides_frozen = self.mode != "recompute"
        self.heads = decoder.active_heads(policy)  # those that run
        self.heads_in_use = decoder.heads_in_use(policy)  # those that answer
        group = encoder_out.group or 1
        self.rows = ActiveRows(x.size(0) // group, group, x.device)
        self.steps = torch.arange(start, length, device=x.device)  # Long [P]
        # Where the P positions stand among those that the biases are made for.
        self.position_slice = slice(None) if cache is None else slice(start, length)
        self.self_biases, self.cross_bias = decoder.biases(length, encoder_out, cache, tree)
        self.step_limit = encoder_out.limits(x.size(0), length)  # Long [N, 1]
        # K/V that the layer in progress was missing, and the states [R, Q, C] they came from.
        self.filled: Optional[tuple[MissingKV, Tensor]] = None
        self.scored = StepScores()
        self.counter = WorkCounter(decoder, self.rows, positions, self.keys)
        if cache is not None:
            cache.begin_step(x, keep_states=kv_mode != "copy")

    @property
    def keys(self) -> int:
        """Positions that self-attention covers, those to come included."""
        return self.tokens.size(1) if self.cache is None else self.cache.capacity

    def start(self, x: Tensor) -> ExitState:
        """Return the state of the exit loop for x [N, P, C]. Padding needs no layer."""
        if self.cache is None:
            mask = self.tokens.eq(self.decoder.padding_idx)
        else:
            mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return ExitState(x, mask, heads=bool(self.heads), known=self.cache is not None)

    # ------------------------------------------------------------------ layers

    def run_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Run a decoder layer over hidden states [R, P, C]."""
        module, slot = self.decoder.layer(layer), layer - 1
        self.counter.add("layers_run")
        self.filled = self.scored.active = None
        # Every token runs layer 1, so nothing is missing there.
        if self.cache is not None and slot > 0 and self.cache.length > 0:
            missing = self.cache.missing(slot, self.rows.sentences)
            if missing is not None:
                states = self.cache.states_at(missing, self.rows.index)  # [R, Q, C]
                filled = missing.positions.numel()
                self.counter.add("kv_backfilled", filled)
                if self.mode == "recompute":
                    return self._recompute(layer, hidden, missing, states)
                self.filled = missing, states
                self.cache.backfill(slot, self.rows.index, missing, states, module.self_kv)
        inputs = self._attention_inputs(slot, layer, module, self.position_slice, None)
        return module(hidden, *inputs)

    def _recompute(self, layer: int, hidden: Tensor, missing: MissingKV, states: Tensor) -> Tensor:
        """Run a layer for the missing positions, too, so that their K/V are the full stack's."""
        assert self.cache is not None and self.cache.states is not None
        module, filled = self.decoder.layer(layer), missing.positions.numel()
        positions = torch.cat([missing.positions, self.steps])  # Long [Q + P]
        mask = missing.mask
        if mask is not None:  # the new positions are stored for every row
            mask = torch.cat([mask, mask.new_ones(mask.size(0), self.positions, 1)], dim=1)
        inputs = self._attention_inputs(layer - 1, layer, module, positions, mask)
        current = module(torch.cat([states, hidden], dim=1), *inputs)  # [R, Q + P, C]
        deeper = current[:, :filled]
        if missing.mask is not None:
            deeper = torch.where(missing.mask, deeper, states)
        rows = slice(None) if self.rows.index is None else self.rows.index[:, None]
        self.cache.states[rows, missing.positions] = deeper
        self.filled = missing, deeper
        return current[:, filled:]

    def run_head(self, layer: int, hidden: Tensor) -> Optional[Tensor]:
        """Run the head after a layer over hidden states [R, P, C], if the policy uses one.

        A head that only serves later ones runs, too, but nothing exits as its features.
        """
        if layer not in self.heads:
            return None
        self.counter.add_head(layer)
        features = self.decoder.exit_heads.features(layer, hidden, self)
        return features if layer in self.heads_in_use else None

    @property
    def memory(self) -> dict[str, Tensor]:
        """Return what gate and heads keep per active row."""
        return self.rows.memory

    def attention_inputs(self, layer: int, module: Any) -> tuple[Any, ...]:
        """Return what the transformer layer of a head takes, see ``heads.base.HeadContext``.

        A head runs whenever its layer does. So the earlier positions whose K/V it lacks are those
        that its layer has just filled, and the states are the same.
        """
        slot = self.depth + self.heads.index(layer)
        if self.cache is not None and self.filled is not None:
            missing, states = self.filled
            self.cache.backfill(slot, self.rows.index, missing, states, module.self_kv)
            filled = missing.positions.numel()
            self.counter.add("head_kv_backfilled", filled)
        return self._attention_inputs(slot, layer + 1, module, self.position_slice, None)

    def _attention_inputs(
        self,
        slot: int,
        bias_layer: int,
        module: Any,
        positions: Tensor | slice,
        mask: Optional[Tensor],
    ) -> tuple[Any, ...]:
        """Return what a decoder layer takes after its hidden states.

        Args:
            slot: place of its K/V in the cache.
            bias_layer: the layer, from 1, whose self-attention bias it has.
            module: the layer.
            positions: those of its hidden states.
            mask: Bool [R, Q, 1], where new K/V are stored; None for everywhere.
        """
        rows, cache = self.rows, self.cache
        # Biases of the positions: [1, heads, P, K] and [S, heads, P, T].
        self_bias = self.self_biases[bias_layer - 1][:, :, positions]
        cross_bias = self.cross_bias[:, :, positions]
        states, sentences = self.encoder_out.states, None
        if rows.sentence_index is not None:
            if self.tree is None:
                cross_bias = cross_bias[rows.sentence_index]
            else:  # every row of a tree has biases of its own
                self_bias, cross_bias = rows.select(self_bias), rows.select(cross_bias)
            sentences = rows.sentences
            if cache is None:
                states = states[rows.sentence_index]
        # K/V of the sentences: those of the active ones are there, [S, heads, T, C / heads].
        (key, value), made = self.decoder.cross_kv(slot, module, states, cache, sentences)
        self.counter.add_cross(slot, rows.sentences if cache is None else made)
        extend: Optional[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = None
        if cache is not None:
            if rows.sentence_index is not None and rows.sentence_slices is None:
                key, value = key[rows.sentence_index], value[rows.sentence_index]

            def extend(new_key: Tensor, new_value: Tensor) -> tuple[Tensor, Tensor]:
                cache.store(slot, rows.index, positions, new_key, new_value, mask)
                return cache.load(slot, rows.index if rows.row_slices is None else None)

        return (
            self_bias,
            (key, value),
            cross_bias,
            extend,
            (rows.row_slices, rows.sentence_slices),
        )

    # ------------------------------------------------------------------ gate

    def gate_input(
        self, layer: int, previous: Tensor, current: Tensor, features: Optional[Tensor]
    ) -> GateInput:
        """Return what the gate may look at after a layer."""
        step = self.steps if self.tree is None else self.rows.select(self.tree.depth)
        score_words = None
        if features is None and layer in self.heads_in_use:  # a head without modules
            features = current
        if features is not None:
            score_words = partial(self._score_words, layer, features)
        heads, learned_confidence = self.decoder.exit_heads, None
        if heads.has_confidence and layer in self.heads_in_use:
            learned_confidence = partial(heads.confidence, layer, current)
        return GateInput(
            previous,
            current,
            layer,
            step=step,
            step_limit=self.rows.select(self.step_limit),
            memory=self.rows.memory,
            score_words=score_words,
            learned_confidence=learned_confidence,
        )

    def _score_words(self, layer: int, features: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``fn`` to the scores of this layer's head, over the allowed words if some are.

        A step of generation scores them once: for every ``fn``, and for the rows that exit here.
        """
        if self.cache is not None and self.decoder.scores_fit(len(features)):
            if self.scored.active is None:
                self.counter.add_scores(None)
                self.scored.active = self.decoder.own_scores(layer, features[:, 0])
            return fn(self.scored.active).unsqueeze(1)
        words, allowed = None, None
        if self.tree is not None and self.tree.allowed is not None:
            words, allowed = self.tree.words, self.rows.select(self.tree.allowed())
        self.counter.add_scores(words)
        return self.decoder.head_scores(layer, features, words, allowed, fn)

    def done(self, exit_mask: Tensor) -> Tensor:
        """Return where no layer is needed: exited, or unused positions of a tree."""
        return exit_mask if self.tree is None else exit_mask | ~self.rows.select(self.tree.asked)

    def read_flags(self, done: Tensor) -> list[bool]:
        """Read ``done``, and with it which sentences beam search has left, in one host read."""
        if self.cache is None:
            return to_host(done.flatten())
        if self.cache.stale:
            values = to_host(torch.cat([done.flatten().long(), self.encoder_out.sentences]))
            self.cache.set_sentences(values[done.numel() :])
            flags = list(map(bool, values[: done.numel()]))
        else:
            flags = to_host(done.flatten())
        self.scored.keep(self.rows.places(), flags)
        return flags

    def refresh(self) -> None:
        """Read which sentences are left, if beam search dropped some."""
        if self.cache is not None and self.cache.stale:
            self.cache.set_sentences(to_host(self.encoder_out.sentences))

    # ------------------------------------------------------------------ leaving

    def slices(self, sentences: list[int]) -> Optional[list[slice]]:
        """Return sentences as slices if their K/V are attended to in place, without a copy."""
        if self.cache is None:
            return None
        return row_slices(sentences, self.encoder_out.states)

    def can_drop(self, staying: int, active: int, slices: Optional[list[slice]]) -> bool:
        """Return whether done sentences leave now.

        Copying K/V costs about what riding along costs, so with copies they leave once half of the
        sentences are done. In copy mode the layers that ran are the exit layers, so none rides.
        """
        if self.cache is None or slices is not None or self.mode == "copy":
            return True
        return staying <= active / 2

    def leave(self, hidden: Tensor, index: Tensor | slice, sentences: list[int]) -> None:
        """Keep the states [L, 1, C] that the K/V of skipped layers will be made from."""
        self.counter.close(sentences)
        if self.cache is not None and self.mode != "copy":
            assert self.cache.states is not None
            self.cache.states[index, self.cache.length] = hidden[:, 0]

    def end_step(self) -> None:
        """Record each sentence's depth in the cache."""
        if self.cache is None:
            return
        if self.mode == "copy":
            self.refresh()
        layers_run = self.counter.closed["layers_run"]
        if self.cache.stale:  # not read yet: a plain bool let all exit at layer 1
            layers_run = [1] * len(self.cache.sentences)
        by_number = dict(zip(self.cache.sentences, layers_run, strict=True))
        if self.mode == "copy":
            self.cache.end_step_by_copy(by_number, self.depth)
        else:
            self.cache.end_step(by_number)

    def trace_step(self, layers_used: Tensor) -> DecoderStep:
        """Return the record of this call; ``layers_used``: Long [N, P]."""
        group = self.rows.group
        rows = {
            name: torch.tensor(counts).repeat_interleave(group)
            for name, counts in self.counter.closed.items()
        }
        first = self.cache is None or self.cache.length == 1
        sentences = len(self.counter.closed["layers_run"])
        full = full_work(self.decoder, sentences, self.counter.tokens, self.keys, first)
        return DecoderStep(
            tokens=self.tokens.clone(),
            sentence=self.encoder_out.sentences.repeat_interleave(group),
            layers_used=layers_used,
            keys=self.keys,
            work=self.counter.work(recomputed=self.mode == "recompute"),
            full_work=full,
            **rows,
        )

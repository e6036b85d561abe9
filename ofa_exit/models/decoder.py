"""The decoder that fairseq calls: the plain stack, or the exit loop over it."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ofa_exit.models.decoder_pass import DecoderPass
from ofa_exit.models.decoder_stack import DecoderStack
from ofa_exit.models.decoder_work import full_work
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.lossless import LosslessDecoding
from ofa_exit.models.word_scores import StepScores
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.runtime.drafts import AllowedWords, Drafting
from ofa_exit.runtime.exit_loop import exit_loop
from ofa_exit.runtime.kv_cache import KVCache
from ofa_exit.runtime.token_tree import TokenTree
from ofa_exit.runtime.trace import DecoderStep

CACHE_KEY = "ofa_decoder_cache"


class Decoder(DecoderStack):
    """OFA's decoder with an optional exit policy, for whole sequences and step by step."""

    def __init__(self, cfg: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(cfg, embed_tokens)
        self.exit_policy: Optional[ExitPolicy] = None
        self.kv_mode = "propagate"
        self.drafting: Optional[Drafting] = None
        self.allowed_words: Optional[AllowedWords] = None
        """What the search of the next batch is known to allow, for drafts."""

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        incremental_state: Optional[dict[str, Any]] = None,
        features_only: bool = False,
        all_layers: bool = False,
        return_layers: bool = False,
        tree: Optional[TokenTree] = None,
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the logits of the next token after each position, or after a growing prefix.

        Args:
            prev_output_tokens: Long [N, L], right-padded, N = S·group hypotheses.
            encoder_out: of the S sentences.
            incremental_state: fairseq's; only the last position is run.
            features_only: return normed features [N, P, C] instead of logits.
            all_layers: add "layer_features", the normed output of every layer, to the extras.
            return_layers: add "layer_states", the input of layer 1 and every layer's output.
            tree: how the L tokens follow each other where they are no plain sequence; not with
                ``incremental_state``.

        Returns:
            Logits [N, P, V], P = L or 1, and extras: "attn" for fairseq, "states" [N, P, C] at
            exit before the final norm, and "layers_used" Long [N, P], None without a gate.
        """
        length = prev_output_tokens.size(1) if tree is None else tree.length
        if length > self.cfg.max_target_positions:
            raise ValueError(
                f"{length} target tokens are more than --max-target-positions "
                f"{self.cfg.max_target_positions}: lower --max-len-b or --max-tgt-length"
            )
        is_asked_more = features_only or all_layers or return_layers
        drafts = self.drafting is not None and not self.training and not is_asked_more
        if drafts and incremental_state is not None:
            return self._lossless_step(prev_output_tokens, encoder_out, incremental_state)
        cache, tokens = None, prev_output_tokens
        if incremental_state is not None:
            cache = self._cache(incremental_state, encoder_out, length)
            tokens = tokens[:, -1:]
        x = self.dropout(self.layernorm_embedding(self.embed_tokens(tokens)))  # [N, P, C]
        if cache is not None:
            heads = self.cfg.decoder_attention_heads
            cache.reserve(x.size(0), heads, x.size(2) // heads, x)

        policy = None if self.training else self.exit_policy
        gate = policy.gate("decoder") if policy is not None else None
        if all_layers or return_layers:  # what every layer makes is asked for
            gate = None
        states: list[Tensor] = []
        layers_used, step, scored = None, None, None
        if policy is not None and gate is not None:
            layers = DecoderPass(
                self, policy, self.kv_mode, x, prev_output_tokens, encoder_out, cache, tree
            )
            state = layers.start(x)
            exit_loop(layers, gate, state)
            layers.end_step()
            x, layers_used, scored = state.output, state.layers_used, layers.scored
            step = layers.trace_step(layers_used)
        else:
            first = cache is None or cache.length == 0
            biases = self.biases(length, encoder_out, cache, tree)
            x, states = self.run_layers(x, biases, encoder_out, cache, all_layers or return_layers)
            if encoder_out.trace is not None:
                step = self._full_step(x, prev_output_tokens, encoder_out, cache, first)
        if encoder_out.trace is not None and step is not None:
            encoder_out.trace.steps.append(step)
        extra: dict[str, Any] = {"attn": [None], "states": x, "layers_used": layers_used}
        if return_layers:
            extra["layer_states"] = states
        if all_layers:
            extra["layer_features"] = [self.layer_norm(state) for state in states[1:]]
        if features_only:
            return (extra["layer_features"][-1] if all_layers else self.layer_norm(x)), extra
        if all_layers:
            return self.output_layer(extra["layer_features"][-1]), extra
        return self._words(x, layers_used, step, encoder_out, scored), extra

    def _words(
        self,
        x: Tensor,
        layers_used: Optional[Tensor],
        step: Optional[DecoderStep],
        encoder_out: EncoderOut,
        scored: Optional[StepScores],
    ) -> Tensor:
        """Return the word scores [N, P, V] of states at exit [N, P, C], and record their price.

        ``scored``: the scores that gates have asked for, of rows that exited on them.
        """
        heads = self.active_heads(self.exit_policy)
        used = None if layers_used is None else layers_used.flatten()
        known = set() if scored is None else set(scored.rows)
        groups = self.rows_by_head(used, heads, known)
        if step is not None:
            tokens = [x.size(1) * (encoder_out.group or 1)] * encoder_out.states.size(0)
            step.score_words(self.word_flops(), tokens, self.word_prices(groups))
        if groups is None:
            return self.output_layer(self.layer_norm(x))
        return self.word_scores(x.flatten(0, 1), groups, scored=scored).unflatten(0, x.shape[:2])

    def _lossless_step(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        incremental_state: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the logits after a growing prefix, with drafts; see ``forward``."""
        decoding = incremental_state.get(CACHE_KEY)
        if decoding is None:
            assert self.drafting is not None
            decoding = LosslessDecoding(self, self.drafting, self.allowed_words)
            incremental_state[CACHE_KEY] = decoding
        scores, step = decoding.step(prev_output_tokens, encoder_out)
        if encoder_out.trace is not None:
            encoder_out.trace.steps.append(step)
        return scores, {"attn": [None], "layers_used": step.layers_used}

    def _full_step(
        self,
        x: Tensor,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        cache: Optional[KVCache],
        first: bool,
    ) -> DecoderStep:
        """Return the trace of a call that ran every layer for every position."""
        group, depth = encoder_out.group or 1, len(self.layers)
        sentences = encoder_out.states.size(0)
        keys = prev_output_tokens.size(1) if cache is None else cache.capacity
        work = full_work(self, sentences, group * x.size(1), keys, first)
        rows = torch.full((x.size(0),), depth, device=x.device)
        return DecoderStep(
            tokens=prev_output_tokens.clone(),
            sentence=encoder_out.sentences.repeat_interleave(group),
            layers_used=torch.full(x.shape[:2], depth, device=x.device),
            layers_run=rows,
            kv_backfilled=torch.zeros_like(rows),
            keys=keys,
            work=list(work),
            full_work=work,
        )

    def _cache(
        self, incremental_state: dict[str, Any], encoder_out: EncoderOut, length: int
    ) -> KVCache:
        cache = incremental_state.get(CACHE_KEY)
        if cache is None:
            heads = self.active_heads(self.exit_policy) if self.exit_heads.caches_kv else []
            slots = len(self.layers) + len(heads)
            cache = KVCache(slots, encoder_out.group or 1, self.cfg.max_target_positions)
            incremental_state[CACHE_KEY] = cache
        if cache.length != length - 1:
            raise ValueError(
                f"incremental decoding goes one token at a time: {cache.length} are cached, "
                f"{length} were given"
            )
        return cache

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        """Follow the search: hypothesis ``new_order[i]`` becomes row i."""
        cache = incremental_state.get(CACHE_KEY)
        if cache is not None:
            cache.reorder(new_order)

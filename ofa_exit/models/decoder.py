"""The decoder: plain, or with a gate behind every layer for every hypothesis and token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Optional, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.heads.transformer import build_exits, parse_exit_layers
from ofa_exit.models.cpu import Linear, linear
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.layers import DecoderLayer
from ofa_exit.models.positions import (
    ShapeCache,
    code_position_ids,
    image_buckets,
    relative_bias,
    token_buckets,
)
from ofa_exit.models.stem import rising_rates
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.runtime.exit_loop import run_with_exits
from ofa_exit.runtime.kv_cache import DecoderCache
from ofa_exit.runtime.token_tree import TokenTree
from ofa_exit.runtime.trace import DecoderStep

CACHE = "ofa_decoder_cache"
SCORES_AT_ONCE = 2**26
"""Scores of words that are held at a time, whichever the batch: 256 MB in float32."""


class Decoder(ShapeCache):
    """OFA's decoder for text (names and shapes are those of its checkpoints).

    ``code_layernorm_embedding``, ``embed_image_positions``, ``image_rel_pos_table_list`` and
    ``image_position_idx`` serve image generation; they are kept for the checkpoints' sake.
    """

    version: Tensor
    token_rp_bucket: Tensor
    image_rp_bucket: Tensor
    image_position_idx: Tensor

    def __init__(self, cfg: Any, embed_tokens: nn.Embedding) -> None:
        nn.Module.__init__(self)  # fairseq's base, which ofa.py adds, wants a dictionary here
        dim, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
        self.cfg = cfg
        self.padding_idx = int(embed_tokens.padding_idx or 0)
        self.exit_policy: Optional[ExitPolicy] = None
        self.target_words: Optional[Tensor] = None
        self.recompute = False
        self.gathers = False  # rows that run become tensors of their own, as compiled parts want
        self.pos_scaling = (dim // heads * cfg.attn_scale_factor) ** -0.5
        self.register_buffer("version", torch.tensor([3.0]))
        self.register_buffer(
            "token_rp_bucket", token_buckets(cfg.token_bucket_size, cfg.max_target_positions)
        )
        self.register_buffer("image_rp_bucket", image_buckets(cfg.image_bucket_size))
        self.register_buffer(
            "image_position_idx", code_position_ids(cfg.code_image_size, cfg.image_bucket_size)
        )

        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(dim)
        self.embed_positions = nn.Embedding(cfg.max_target_positions + 2, dim)
        self.embed_image_positions = nn.Embedding(cfg.image_bucket_size**2 + 1, dim)
        self.pos_ln = nn.LayerNorm(dim)
        self.image_pos_ln = nn.LayerNorm(dim)
        self.self_pos_q_linear = nn.Linear(dim, dim)
        self.self_pos_k_linear = nn.Linear(dim, dim)
        self.cross_pos_q_linear = nn.Linear(dim, dim)
        self.cross_pos_k_linear = nn.Linear(dim, dim)
        self.code_layernorm_embedding = nn.LayerNorm(dim)

        rates = rising_rates(cfg.decoder_drop_path_rate, cfg.decoder_layers)

        def layer(drop_path: float = 0.0) -> DecoderLayer:
            return DecoderLayer(
                dim,
                cfg.decoder_ffn_embed_dim,
                heads,
                cfg.attn_scale_factor,
                cfg.dropout,
                cfg.attention_dropout,
                cfg.activation_dropout,
                drop_path,
            )

        self.layers = nn.ModuleList(layer(rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(dim)
        self.output_projection = Linear(dim, embed_tokens.num_embeddings, bias=False)
        self.output_projection.weight = embed_tokens.weight
        self.token_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(2 * cfg.token_bucket_size - 1, heads) for _ in rates
        )
        self.image_rel_pos_table_list = nn.ModuleList(
            nn.Embedding((2 * cfg.image_bucket_size - 1) ** 2 + 3, heads) for _ in rates
        )
        exits = parse_exit_layers(cfg.exit_layers, cfg.decoder_layers)
        self.exits = build_exits(layer, self.layers, exits)
        self.dropout = nn.Dropout(cfg.dropout)
        for embedding in (self.embed_positions, self.embed_image_positions):
            nn.init.normal_(embedding.weight, mean=0.0, std=0.02)
        for table in (*self.token_rel_pos_table_list, *self.image_rel_pos_table_list):
            nn.init.zeros_(table.weight)
        # Never reached by text: without a gradient, data-parallel training would wait for one.
        for unused in (
            self.embed_image_positions,
            self.image_pos_ln,
            self.code_layernorm_embedding,
            self.image_rel_pos_table_list,
        ):
            unused.requires_grad_(False)

    # ------------------------------------------------------------------ biases

    def _heads(self, linear: nn.Linear, positions: Tensor) -> Tensor:
        heads = self.cfg.decoder_attention_heads
        return linear(positions).unflatten(-1, (heads, -1)).transpose(1, 2)

    def self_biases(self, length: int) -> list[Tensor]:
        """Causal self-attention bias of every layer, [1, heads, length, length] each."""

        def compute() -> list[Tensor]:
            positions = self.pos_ln(self.embed_positions.weight[:length].unsqueeze(0))
            query = self._heads(self.self_pos_q_linear, positions) * self.pos_scaling
            absolute = query @ self._heads(self.self_pos_k_linear, positions).transpose(2, 3)
            ones = torch.ones(length, length, dtype=torch.bool, device=absolute.device)
            absolute = absolute.masked_fill(ones.triu(1), float("-inf"))
            buckets = self.token_rp_bucket[:length, :length]
            return [absolute + relative_bias(t, buckets) for t in self.token_rel_pos_table_list]

        return self.once_per_shape("decoder", length, compute)

    def cross_bias(self, length: int, encoder_out: EncoderOut) -> Tensor:
        """Cross-attention bias of all layers, [S, heads, length, T], -inf on padding."""
        source = encoder_out.positions

        def compute() -> tuple[Tensor, Tensor]:
            positions = self.pos_ln(self.embed_positions.weight[:length].unsqueeze(0))
            query = self._heads(self.cross_pos_q_linear, positions) * self.pos_scaling
            key = self._heads(self.cross_pos_k_linear, source)
            return source, query @ key.transpose(2, 3)

        # Positions of one shape are one tensor, kept here too so that nothing else has its id.
        _, bias = self.once_per_shape("cross", (id(source), length), compute)
        return bias.masked_fill(encoder_out.padding_mask[:, None, None, :], float("-inf"))

    def biases(
        self,
        length: int,
        encoder_out: EncoderOut,
        cache: Optional[DecoderCache],
        tree: Optional[TokenTree] = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Self-attention biases of all layers and the cross-attention bias.

        For ``length`` positions, for those of ``tree``, or with a cache once a batch for all
        positions it has room for.
        """
        if tree is not None:
            biases = [tree.self_bias(bias) for bias in self.self_biases(tree.length)]
            return biases, tree.cross_bias(self.cross_bias(tree.length, encoder_out))
        if cache is None:
            return self.self_biases(length), self.cross_bias(length, encoder_out)
        if cache.cross_bias is None:
            cache.cross_bias = self.cross_bias(cache.capacity, encoder_out)
        return self.self_biases(cache.capacity), cache.cross_bias

    # ------------------------------------------------------------------ forward

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
        """Logits of the next token after each position, or after the last one of a growing prefix.

        prev_output_tokens: Long [N, L], right-padded, N = S·group hypotheses; encoder_out: of the S
        sentences. With incremental_state only the last position is run. tree: how the L tokens
        follow each other where they are no plain sequence; not with incremental_state.
        Returns [N, L or 1, V] (features [N, L or 1, C] after the final norm with features_only) and
        {"attn": [None]}; all_layers adds "layer_features", the normed output of every layer, and
        return_layers "layer_states", the plain input of layer 1 and output of every layer.
        """
        length = prev_output_tokens.size(1) if tree is None else tree.length
        if length > self.cfg.max_target_positions:
            raise ValueError(
                f"{length} target tokens are more than --max-target-positions "
                f"{self.cfg.max_target_positions}: lower --max-len-b or --max-tgt-length"
            )
        cache = None
        tokens = prev_output_tokens
        if incremental_state is not None:
            cache = self._cache(incremental_state, encoder_out, length)
            tokens = tokens[:, -1:]
        x = self.dropout(self.layernorm_embedding(self.embed_tokens(tokens)))
        if cache is not None:
            heads = self.cfg.decoder_attention_heads
            cache.reserve(x.size(0), heads, x.size(2) // heads, x)

        policy = None if self.training else self.exit_policy
        gate = policy.decoder_gate() if policy is not None else None
        states: list[Tensor] = []
        if gate is not None:
            x, layers, counts = run_with_exits(
                self, x, prev_output_tokens, encoder_out, gate, cache, tree, self.used_exits()
            )
        else:
            biases = self.biases(length, encoder_out, cache, tree)
            x, states = self._run(x, biases, encoder_out, cache, all_layers or return_layers)
            layers = torch.full(x.shape[:2], len(self.layers), device=x.device)
            counts = dict(ran=layers[:, 0], repaid=torch.zeros_like(layers[:, 0]))
        if encoder_out.trace is not None:
            sentence = encoder_out.sentences.repeat_interleave(encoder_out.group or 1)
            asked = torch.full_like(sentence, x.size(1)) if tree is None else tree.asked.sum(dim=1)
            keys = None if cache is None else cache.capacity
            encoder_out.trace.steps.append(
                DecoderStep(
                    prev_output_tokens.clone(), sentence, layers, asked=asked, keys=keys, **counts
                )
            )
        extra: dict[str, Any] = {"attn": [None]}
        if all_layers:
            extra["layer_features"] = [self.layer_norm(state) for state in states[1:]]
            features = extra["layer_features"][-1]
        else:
            features = self.layer_norm(x)
        if return_layers:
            extra["layer_states"] = states
        return (features if features_only else self.output_layer(features)), extra

    def exit_features(
        self, states: list[Tensor], encoder_out: EncoderOut
    ) -> Iterator[tuple[int, Tensor]]:
        """(layer, what its exit makes of the whole sequence, normed [N, L, C]) of every exit.

        states: the backbone's, of ``forward`` with return_layers. Gradients reach the exit
        transformers alone: everything of the backbone, its final norm and position biases
        included, is frozen. An exit behind layer i is biased as layer i + 1 is.
        """
        with torch.no_grad():
            self_biases, cross_bias = self.biases(states[0].size(1), encoder_out, None)
        for name, module in self.exits.items():
            number, layer = int(name), cast(DecoderLayer, module)
            cross_kv = layer.encoder_attn.project_kv(encoder_out.states)
            arguments = (states[number], self_biases[number], cross_kv, cross_bias)
            if layer.training and self.cfg.checkpoint_activations:
                state = torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False)
            else:
                state = layer(*arguments)
            yield number, self.layer_norm(state)

    def output_layer(self, features: Tensor) -> Tensor:
        """Vocabulary projection: [..., C] -> [..., V], or [..., K] of the K ``target_words``."""
        if self.target_words is None:
            return self.output_projection(features)
        words = self.target_words
        weight = self.output_projection.weight
        # ``words`` is kept as well, so that nothing else can have its id.
        _, rows = self.once_per_shape("words", id(words), lambda: (words, _rows(weight, words)))
        return linear(features, rows)

    def keep_words(self, words: Optional[Tensor]) -> None:
        """Scores only ``words`` Long [K], in their order, until this is called with None."""
        self.target_words = words

    def _run(
        self,
        x: Tensor,
        biases: tuple[list[Tensor], Tensor],
        encoder_out: EncoderOut,
        cache: Optional[DecoderCache],
        keep: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """The plain stack over x [N, P, C]."""
        start = 0 if cache is None else cache.length
        length = start + x.size(1)
        self_biases, cross_bias = biases
        cross_bias = cross_bias[:, :, start:length]
        states = [x] if keep else []
        for index, layer in enumerate(self.layers):
            extend = None
            if cache is not None:

                def extend(key: Tensor, value: Tensor, index: int = index) -> tuple[Tensor, Tensor]:
                    cache.store(index, None, slice(start, length), key, value)
                    return cache.load(index, None)

            arguments = (
                x,
                self_biases[index][:, :, start:length],
                self.cross_kv(index, encoder_out.states, cache),
                cross_bias,
                extend,
            )
            if self.training and self.cfg.checkpoint_activations:
                x = torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
            if keep:
                states.append(x)
        if cache is not None:
            cache.length += 1
        return x, states

    def used_exits(self) -> list[int]:
        """Layers, from 1, whose exits the policy runs."""
        there = [int(layer) for layer in self.exits]
        if self.exit_policy is None:
            return []
        return sorted(set(self.exit_policy.exits_used(there)) & set(there))

    def exit_scores(
        self,
        features: Tensor,
        words: Optional[Tensor],
        allowed: Optional[Tensor],
        reduce: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """What ``reduce`` makes [M] of the words' scores [M, V] for what an exit made of rows,
        [N, P, C] -> [N, P], SCORES_AT_ONCE at a time. Of a closed set ``words`` Long [W] those
        alone are scored, -inf where ``allowed`` Bool [N, P, W] is not set."""
        shape, features = features.shape[:2], self.layer_norm(features).flatten(0, 1)
        if words is None or allowed is None:
            at_once = max(1, SCORES_AT_ONCE // self.output_projection.weight.size(0))
            found = [reduce(self.output_layer(part)) for part in features.split(at_once)]
        else:
            weight, forbidden = self.output_projection.weight[words], ~allowed.flatten(0, 1)
            at_once = max(1, SCORES_AT_ONCE // len(words))
            found = [
                reduce(F.linear(part, weight).masked_fill(mask, float("-inf")))
                for part, mask in zip(features.split(at_once), forbidden.split(at_once))
            ]
        return torch.cat(found).view(shape)

    def layer(self, index: int) -> DecoderLayer:
        """Layer ``index`` from 0, and behind the last the exits that the policy runs."""
        if index < len(self.layers):
            return cast(DecoderLayer, self.layers[index])
        return cast(DecoderLayer, self.exits[str(self.used_exits()[index - len(self.layers)])])

    def cross_kv(
        self,
        index: int,
        states: Tensor,
        cache: Optional[DecoderCache],
        places: Optional[list[int]] = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-attention K/V of one layer or exit, [S, heads, T, C / heads] each, for the
        encoder's states [S, T, C]. With a cache they are made when a sentence first gets there:
        now for those at ``places``, None for all."""
        project = self.layer(index).encoder_attn.project_kv
        return project(states) if cache is None else cache.cross_kv(index, states, project, places)

    def _cache(
        self, incremental_state: dict[str, Any], encoder_out: EncoderOut, length: int
    ) -> DecoderCache:
        cache = incremental_state.get(CACHE)
        if cache is None:
            layers = len(self.layers) + len(self.used_exits())
            cache = DecoderCache(layers, encoder_out.group or 1, self.cfg.max_target_positions)
            incremental_state[CACHE] = cache
        if cache.length != length - 1:
            raise ValueError(
                f"incremental decoding goes one token at a time: {cache.length} are cached, "
                f"{length} were given"
            )
        return cache

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        """Follows beam search: hypothesis ``new_order[i]`` becomes row i."""
        cache = incremental_state.get(CACHE)
        if cache is not None:
            cache.reorder(new_order)


def _rows(weight: Tensor, words: Tensor) -> Tensor:
    """weight[words], a view where they are the first ones."""
    first = torch.arange(len(words), device=words.device)
    return weight[: len(words)] if torch.equal(words, first) else weight[words]

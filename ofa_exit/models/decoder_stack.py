"""The decoder's stack: embeddings, layers, exit heads, position biases and word scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from ofa_exit.heads.registry import build_heads
from ofa_exit.models.cpu import Linear
from ofa_exit.models.encoder_out import EncoderOut
from ofa_exit.models.layers import DecoderLayer
from ofa_exit.models.positions import (
    code_position_ids,
    image_buckets,
    relative_bias,
    token_buckets,
)
from ofa_exit.models.stem import rising_rates
from ofa_exit.models.word_scores import WordScores
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.runtime.kv_cache import KVCache
from ofa_exit.runtime.token_tree import TokenTree


class DecoderStack(WordScores):
    """OFA's decoder layers for text; names and shapes are those of its checkpoints.

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
        self.layers = nn.ModuleList(self.new_layer(rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(dim)
        self.output_projection = Linear(dim, embed_tokens.num_embeddings, bias=False)
        self.output_projection.weight = embed_tokens.weight
        self.token_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(2 * cfg.token_bucket_size - 1, heads) for _ in rates
        )
        self.image_rel_pos_table_list = nn.ModuleList(
            nn.Embedding((2 * cfg.image_bucket_size - 1) ** 2 + 3, heads) for _ in rates
        )
        self.exits = build_heads(cfg, self)  # the name that checkpoints know; see exit_heads
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

    def new_layer(self, drop_path: float = 0.0) -> DecoderLayer:
        """Return a decoder layer of this model's sizes, with new weights."""
        cfg = self.cfg
        return DecoderLayer(
            cfg.decoder_embed_dim,
            cfg.decoder_ffn_embed_dim,
            cfg.decoder_attention_heads,
            cfg.attn_scale_factor,
            cfg.dropout,
            cfg.attention_dropout,
            cfg.activation_dropout,
            drop_path,
        )

    def layer(self, number: int) -> DecoderLayer:
        """Return a layer by its number, from 1."""
        return cast(DecoderLayer, self.layers[number - 1])

    def heads_in_use(self, policy: Optional[ExitPolicy]) -> list[int]:
        """Return the layers, from 1, whose heads a policy uses."""
        heads = self.exit_heads
        if policy is None:
            return []
        return sorted(set(policy.select_heads(heads.layers)) & set(heads.layers))

    def active_heads(self, policy: Optional[ExitPolicy]) -> list[int]:
        """Return the layers, from 1, whose trained heads run under a policy."""
        heads = self.exit_heads
        return heads.select(self.heads_in_use(policy)) if heads.trained else []

    # ------------------------------------------------------------------ biases

    def _heads(self, linear: nn.Linear, positions: Tensor) -> Tensor:
        """Project positions [1, L, C] and split the heads: [1, heads, L, C / heads]."""
        heads = self.cfg.decoder_attention_heads
        return linear(positions).unflatten(-1, (heads, -1)).transpose(1, 2)

    def self_biases(self, length: int) -> list[Tensor]:
        """Return the causal self-attention bias of every layer, [1, heads, length, length] each."""

        def compute() -> list[Tensor]:
            positions = self.pos_ln(self.embed_positions.weight[:length].unsqueeze(0))
            # [1, length, C] -> [1, heads, length, C / heads]
            query = self._heads(self.self_pos_q_linear, positions) * self.pos_scaling
            key = self._heads(self.self_pos_k_linear, positions)
            absolute = query @ key.transpose(2, 3)  # [1, heads, length, length]
            ones = torch.ones(length, length, dtype=torch.bool, device=absolute.device)
            absolute = absolute.masked_fill(ones.triu(1), float("-inf"))
            buckets = self.token_rp_bucket[:length, :length]
            return [absolute + relative_bias(t, buckets) for t in self.token_rel_pos_table_list]

        return self.once_per_shape("decoder", length, compute)

    def cross_bias(self, length: int, encoder_out: EncoderOut) -> Tensor:
        """Return the cross-attention bias of all layers, [S, heads, length, T], -inf on padding."""
        source = encoder_out.positions  # [1, T, C]

        def compute() -> tuple[Tensor, Tensor]:
            positions = self.pos_ln(self.embed_positions.weight[:length].unsqueeze(0))
            query = self._heads(self.cross_pos_q_linear, positions) * self.pos_scaling
            key = self._heads(self.cross_pos_k_linear, source)  # [1, heads, T, C / heads]
            return source, query @ key.transpose(2, 3)  # [1, heads, length, T]

        # Positions of one shape are one tensor, kept here too so that nothing else has its id.
        _, bias = self.once_per_shape("cross", (id(source), length), compute)
        return bias.masked_fill(encoder_out.padding_mask[:, None, None, :], float("-inf"))

    def biases(
        self,
        length: int,
        encoder_out: EncoderOut,
        cache: Optional[KVCache],
        tree: Optional[TokenTree] = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the self-attention biases of all layers and the cross-attention bias.

        Make them for ``length`` positions, or for those of ``tree``. With a cache, make them once
        per batch, for its whole capacity.
        """
        if tree is not None:
            biases = [tree.self_bias(bias) for bias in self.self_biases(tree.length)]
            return biases, tree.cross_bias(self.cross_bias(tree.length, encoder_out))
        if cache is None:
            return self.self_biases(length), self.cross_bias(length, encoder_out)
        if cache.cross_bias is None:
            cache.cross_bias = self.cross_bias(cache.capacity, encoder_out)
        return self.self_biases(cache.capacity), cache.cross_bias

    def self_bias_flops(self, positions: int) -> int:
        """Return the FLOPs of the self-attention bias over L positions: 4·L·C² + 2·L²·C."""
        dim = self.cfg.decoder_embed_dim
        return 4 * positions * dim**2 + 2 * positions**2 * dim

    def cross_bias_flops(self, positions: int, source: int) -> int:
        """Return the FLOPs of the cross-attention bias, L·T pairs: 2·(L + T)·C² + 2·L·T·C."""
        dim = self.cfg.decoder_embed_dim
        return 2 * (positions + source) * dim**2 + 2 * positions * source * dim

    # ------------------------------------------------------------------ layers

    def cross_kv(
        self,
        slot: int,
        module: Any,
        states: Tensor,
        cache: Optional[KVCache],
        sentences: Optional[list[int]] = None,
    ) -> tuple[tuple[Tensor, Tensor], list[int]]:
        """Return the cross-attention K/V that a layer or head makes of the encoder's states.

        Args:
            slot: its place in the cache.
            module: the decoder layer, which projects.
            states: [S, T, C].
            cache: where they are kept; made when a sentence first gets there.
            sentences: places of the active sentences; None for all.

        Returns:
            Keys and values, [S, heads, T, C / heads] each, and the places of the sentences whose
            K/V were made now.
        """
        project = module.encoder_attn.project_kv
        if cache is None:
            active = range(states.size(0)) if sentences is None else sentences
            return project(states), list(active)
        return cache.cross_kv(slot, states, project, sentences)

    def run_layers(
        self,
        x: Tensor,
        biases: tuple[list[Tensor], Tensor],
        encoder_out: EncoderOut,
        cache: Optional[KVCache],
        keep: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the plain stack over x [N, P, C].

        Returns:
            The last hidden states [N, P, C] and, with ``keep``, those before and after each layer.
        """
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

            cross_kv, _ = self.cross_kv(index, layer, encoder_out.states, cache)
            arguments = (x, self_biases[index][:, :, start:length], cross_kv, cross_bias, extend)
            if self.training and self.cfg.checkpoint_activations:
                x = torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
            if keep:
                states.append(x)
        if cache is not None:
            cache.length += 1
        return x, states

    def head_features(
        self, states: list[Tensor], encoder_out: EncoderOut
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (layer, features [N, L, C]) of every head over whole sequences.

        Position biases are constants here.

        Args:
            states: the backbone's, as ``run_layers`` keeps them.
        """
        with torch.no_grad():
            self_biases, cross_bias = self.biases(states[0].size(1), encoder_out, None)
        context = _WholeSequence(self_biases, cross_bias, encoder_out.states)
        heads = self.exit_heads
        for layer in heads.layers:
            if heads.training and self.cfg.checkpoint_activations:
                features = torch.utils.checkpoint.checkpoint(
                    heads.features, layer, states[layer], context, use_reentrant=False
                )
            else:
                features = heads.features(layer, states[layer], context)
            yield layer, cast(Tensor, features)


class _WholeSequence:
    """What a head attends to in training: whole sequences, no cache."""

    def __init__(self, self_biases: list[Tensor], cross_bias: Tensor, states: Tensor) -> None:
        self.self_biases, self.cross_bias, self.states = self_biases, cross_bias, states
        self._memory: dict[str, Tensor] = {}

    @property
    def memory(self) -> dict[str, Tensor]:
        return self._memory

    def attention_inputs(self, layer: int, module: Any) -> tuple[Any, ...]:
        """A head after layer i is biased as layer i + 1 is."""
        cross_kv = module.encoder_attn.project_kv(self.states)
        return self.self_biases[layer], cross_kv, self.cross_bias

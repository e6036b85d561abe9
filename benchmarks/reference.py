"""Plain OFA, step by step as in the official code: the reference of the benchmarks.

Every hypothesis has its own copy of the encoder output, the positions and the cross-attention K/V.
Position biases are computed for every row at every step. The self-attention cache grows by
concatenation. Cross-attention K/V are reordered only when the number of hypotheses changes.
Attention is two matrix products around a float32 softmax. Batch norms are separate layers, and
images are stored channels first.

It shares nothing but the weights with ``ofa_exit``, so it also checks the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from torch import Tensor, nn

from benchmarks.reference_layers import (
    DecoderLayer,
    Encoded,
    EncoderLayer,
    Stem,
    position_bias,
    table_bias,
)
from ofa_exit.models.archs import RESNET_STAGES

CACHE = "reference_cache"


class ReferenceEncoder(FairseqEncoder):
    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(dictionary)
        dim, heads = cfg.encoder_embed_dim, cfg.encoder_attention_heads
        positions, bucket, cells = (
            cfg.max_source_positions, cfg.token_bucket_size, cfg.image_bucket_size
        )  # fmt: skip
        self.cfg, self.heads = cfg, heads
        self.scaling = (dim // heads * cfg.attn_scale_factor) ** -0.5
        self.register_buffer("token_rp_bucket", torch.empty(positions, positions).long())
        self.register_buffer("image_rp_bucket", torch.empty(cells**2 + 1, cells**2 + 1).long())
        self.embed_tokens = embed_tokens
        self.type_embedding = nn.Embedding(2, dim)
        self.embed_images = Stem(RESNET_STAGES[cfg.resnet_type], cfg.resnet_width)
        self.image_proj = nn.Linear(16 * cfg.resnet_width, dim)
        self.embed_positions = nn.Embedding(positions + 2, dim)
        self.embed_image_positions = nn.Embedding(cells**2 + 1, dim)
        for norm in (
            "layernorm_embedding", "patch_layernorm_embedding", "pos_ln", "image_pos_ln",
            "layer_norm",
        ):  # fmt: skip
            self.add_module(norm, nn.LayerNorm(dim))
        self.pos_q_linear, self.pos_k_linear = nn.Linear(dim, dim), nn.Linear(dim, dim)
        layers = range(cfg.encoder_layers)
        self.layers = nn.ModuleList(EncoderLayer(cfg) for _ in layers)
        self.token_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(2 * bucket - 1, heads) for _ in layers
        )
        self.image_rel_pos_table_list = nn.ModuleList(
            nn.Embedding((2 * cells - 1) ** 2 + 3, heads) for _ in layers
        )

    def forward_torchscript(self, net_input: dict[str, Any]) -> Encoded:
        return self(**{k: net_input[k] for k in ("src_tokens", "patch_images", "patch_masks")})

    def embed_image(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        features = self.embed_images(images)
        x = self.image_proj(features.flatten(2).transpose(1, 2)) + self.type_embedding.weight[1]
        return self.patch_layernorm_embedding(x), (features.size(2), features.size(3))

    def absolute_bias(self, positions: Tensor) -> Tensor:
        query, key = self.pos_q_linear(positions), self.pos_k_linear(positions)
        return position_bias(query, key, self.heads, self.scaling)

    def layer_bias(self, layer: int, absolute: Tensor, ids: Optional[Tensor], words: int) -> Tensor:
        """Add the layer's relative biases to the absolute one, [N, heads, T, T].

        Args:
            ids: image position ids, Long [N, Ti], or None. They get the 2-D bias.
            words: text tokens after the cells. They get the 1-D bias.
        """
        bias, rows = absolute.clone(), absolute.size(0)
        cells = 0 if ids is None else ids.size(1)
        if words:
            buckets = self.token_rp_bucket[:words, :words].expand(rows, -1, -1)
            table = self.token_rel_pos_table_list[layer]
            bias[:, :, cells:, cells:] += table_bias(table, buckets)
        if ids is not None:
            buckets = self.image_rp_bucket[ids[:, :, None], ids[:, None, :]]
            bias[:, :, :cells, :cells] += table_bias(self.image_rel_pos_table_list[layer], buckets)
        return bias

    def run(
        self,
        x: Tensor,
        positions: Tensor,
        padding: Optional[Tensor],
        ids: Optional[Tensor],
        words: int,
    ) -> Tensor:
        absolute = self.absolute_bias(positions)
        for number, layer in enumerate(self.layers):
            x = layer(x, self.layer_bias(number, absolute, ids, words), padding)
        return x

    def forward(self, src_tokens: Tensor, patch_images: Tensor, patch_masks: Tensor) -> Encoded:
        rows, words = src_tokens.shape
        padding = src_tokens.eq(self.dictionary.pad())
        text = self.layernorm_embedding(
            self.embed_tokens(src_tokens) + self.type_embedding.weight[0]
        ).masked_fill(padding[:, :, None], 0.0)
        image, (height, width) = self.embed_image(patch_images)
        image = image.masked_fill(~patch_masks[:, None, None], 0.0)
        grid = torch.arange(height, device=text.device)[:, None] * self.cfg.image_bucket_size
        ids = (grid + torch.arange(width, device=text.device) + 1).flatten().expand(rows, -1)
        image_positions = self.image_pos_ln(self.embed_image_positions(ids))
        text_ids = torch.arange(words, device=text.device).expand(rows, -1)
        text_positions = self.pos_ln(self.embed_positions(text_ids))
        image_padding = ~patch_masks[:, None].expand(-1, image.size(1))
        whole_padding = torch.cat([image_padding, padding], dim=1)
        positions = torch.cat([image_positions, text_positions], dim=1)
        if self.cfg.split_modalities:
            image = self.run(image, image_positions, None, ids, 0)
            text = self.run(text, text_positions, padding, None, words)
            x = torch.cat([image, text], dim=1)
        else:
            x = self.run(torch.cat([image, text], dim=1), positions, whole_padding, ids, words)
        return Encoded(self.layer_norm(x), whole_padding, positions)

    def reorder_encoder_out(self, encoder_out: Encoded, new_order: Tensor) -> Encoded:
        return replace(
            encoder_out,
            states=encoder_out.states.index_select(0, new_order),
            padding=encoder_out.padding.index_select(0, new_order),
            positions=encoder_out.positions.index_select(0, new_order),
        )

    def max_positions(self) -> int:
        return self.cfg.max_source_positions


class ReferenceDecoder(FairseqIncrementalDecoder):
    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(dictionary)
        dim, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
        positions = cfg.max_target_positions
        self.cfg, self.heads = cfg, heads
        self.scaling = (dim // heads * cfg.attn_scale_factor) ** -0.5
        self.register_buffer("token_rp_bucket", torch.empty(positions, positions).long())
        self.embed_tokens = embed_tokens
        self.embed_positions = nn.Embedding(positions + 2, dim)
        for norm in ("layernorm_embedding", "pos_ln", "layer_norm"):
            self.add_module(norm, nn.LayerNorm(dim))
        for kind in ("self", "cross"):
            self.add_module(f"{kind}_pos_q_linear", nn.Linear(dim, dim))
            self.add_module(f"{kind}_pos_k_linear", nn.Linear(dim, dim))
        self.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.decoder_layers))
        self.token_rel_pos_table_list = nn.ModuleList(
            nn.Embedding(2 * cfg.token_bucket_size - 1, heads) for _ in self.layers
        )

    def absolute_biases(self, rows: int, length: int, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Compute the biases of every row: [N, heads, L, L] and [N, heads, 1, T]."""
        ids = torch.arange(length, device=encoded.states.device).expand(rows, -1)
        positions = self.pos_ln(self.embed_positions(ids))
        own = position_bias(
            self.self_pos_q_linear(positions),
            self.self_pos_k_linear(positions),
            self.heads,
            self.scaling,
        )
        cross = position_bias(
            self.cross_pos_q_linear(positions),
            self.cross_pos_k_linear(encoded.positions),
            self.heads,
            self.scaling,
        )
        return own, cross[:, :, -1:]

    def layer_bias(self, layer: int, absolute: Tensor) -> Tensor:
        rows, _, length, _ = absolute.shape
        buckets = self.token_rp_bucket[:length, :length].expand(rows, -1, -1)
        bias = absolute + table_bias(self.token_rel_pos_table_list[layer], buckets)
        return bias[:, :, -1:]

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Encoded,
        incremental_state: dict[str, Any],
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits [N, 1, V] after the last of the L tokens, in incremental decoding."""
        rows, length = prev_output_tokens.shape
        saved = incremental_state.setdefault(CACHE, [{} for _ in self.layers])
        own, cross = self.absolute_biases(rows, length, encoder_out)
        x = self.layernorm_embedding(self.embed_tokens(prev_output_tokens[:, -1:]))
        for number, (layer, layer_kv) in enumerate(zip(self.layers, saved)):
            x = layer(x, encoder_out, self.layer_bias(number, own), cross, layer_kv)
        return self.output_layer(self.layer_norm(x)), {"attn": [None]}

    def output_layer(self, features: Tensor) -> Tensor:
        return F.linear(features, self.embed_tokens.weight)

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        for layer_kv in incremental_state.get(CACHE, ()):
            for kind, (key, value) in layer_kv.items():
                if kind == "self" or key.size(0) != new_order.size(0):
                    layer_kv[kind] = tuple(part.index_select(0, new_order) for part in (key, value))

    def max_positions(self) -> int:
        return self.cfg.max_target_positions


class Reference(FairseqEncoderDecoderModel):
    """Plain OFA, with a joint or split encoder according to ``cfg.split_modalities``."""

    @classmethod
    def from_model(cls, model: Any) -> Reference:
        """Build the reference of an OFAModel, with the same weight tensors.

        Call it before the model is prepared for inference, which may change weights.
        """
        cfg = model.cfg
        if cfg.sync_bn or cfg.interpolate_position:
            raise ValueError("the reference supports neither --sync-bn nor --interpolate-position")
        dictionary, weights = model.decoder.dictionary, model.state_dict()
        with torch.device("meta"):
            words = nn.Embedding(len(dictionary), cfg.encoder_embed_dim, dictionary.pad())
            reference = cls(
                ReferenceEncoder(cfg, dictionary, words), ReferenceDecoder(cfg, dictionary, words)
            )
        own = {name: weights[name].contiguous() for name in reference.state_dict()}
        nn.Module.load_state_dict(reference, own, assign=True)  # fairseq's method cannot assign
        return reference.eval().requires_grad_(False)

"""Plain OFA, written down step by step: what the runtime is compared with.

Every hypothesis of a beam has its own copy of the encoder's output, of the positions and of the
cross-attention K/V; position biases, position keys among them, are made again for every row and
at every step; self-attention's cache grows by concatenation. Cross-attention K/V follow the beams
only when their number changes, as in the official code. Attention is two matrix products around a
softmax in float32, batch norm is a layer of its own, and images lie in memory channel by channel.

Nothing here is shared with ``ofa_exit`` but the weights, so it checks the model as well.
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
from ofa_exit.models.stem import RESNET_STAGES

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
        """The absolute bias plus the layer's 2-D bias of the cells `ids` [N, Ti] and its 1-D bias
        of so many words, which follow the cells."""
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
        places = torch.arange(words, device=text.device).expand(rows, -1)
        text_positions = self.pos_ln(self.embed_positions(places))
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
        """For every row anew, at every step: [N, heads, L, L] and [N, heads, L, T]."""
        places = torch.arange(length, device=encoded.states.device).expand(rows, -1)
        positions = self.pos_ln(self.embed_positions(places))
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
        """Logits [N, 1, V] after the last of the L tokens; only the growing prefix of a search."""
        rows, length = prev_output_tokens.shape
        saved = incremental_state.setdefault(CACHE, [{} for _ in self.layers])
        own, cross = self.absolute_biases(rows, length, encoder_out)
        x = self.layernorm_embedding(self.embed_tokens(prev_output_tokens[:, -1:]))
        for number, (layer, kept) in enumerate(zip(self.layers, saved)):
            x = layer(x, encoder_out, self.layer_bias(number, own), cross, kept)
        return self.output_layer(self.layer_norm(x)), {"attn": [None]}

    def output_layer(self, features: Tensor) -> Tensor:
        return F.linear(features, self.embed_tokens.weight)

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        for kept in incremental_state.get(CACHE, ()):
            for kind, (key, value) in kept.items():
                if kind == "self" or key.size(0) != new_order.size(0):
                    kept[kind] = key.index_select(0, new_order), value.index_select(0, new_order)

    def max_positions(self) -> int:
        return self.cfg.max_target_positions


class Reference(FairseqEncoderDecoderModel):
    """Plain OFA; joint or split as ``cfg.split_modalities`` says."""

    @classmethod
    def of(cls, model: Any) -> Reference:
        """The same model as an OFAModel, with its very weights (nothing is copied).

        Call it before the model is prepared for inference, which may change weights.
        """
        cfg = model.cfg
        if cfg.sync_bn or cfg.interpolate_position:
            raise ValueError("the reference knows neither --sync-bn nor --interpolate-position")
        dictionary, weights = model.decoder.dictionary, model.state_dict()
        with torch.device("meta"):
            words = nn.Embedding(len(dictionary), cfg.encoder_embed_dim, dictionary.pad())
            reference = cls(
                ReferenceEncoder(cfg, dictionary, words), ReferenceDecoder(cfg, dictionary, words)
            )
        own = {name: weights[name].contiguous() for name in reference.state_dict()}
        nn.Module.load_state_dict(reference, own, assign=True)  # fairseq's cannot assign
        return reference.eval().requires_grad_(False)

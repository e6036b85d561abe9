"""The arithmetic that full depth cannot avoid: its convolutions and matrix products.

Convolutions are the stem's own, with batch norms folded in. Products are those of ``models.cpu``.
There are no norms, no GELU, no embeddings, no beam search and no caches to move. Each product is
computed once: the encoder once per sentence, cross-attention K/V once per sentence and layer,
position keys once per batch. A decoder step has all hypotheses as rows of one product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.models.cpu import in_chunks, linear

Weights = tuple[Tensor, Tensor]


class Floor:
    """Compute the arithmetic of one batch; the result has no meaning."""

    def __init__(
        self, stem: nn.Module, reference: Any, batch: dict[str, Any], calls: list[tuple[int, int]]
    ) -> None:
        """Prepare inputs of the right shapes.

        Args:
            stem: the model's own.
            reference: a Reference, for all other weights.
            batch: as ``setting.sample`` returns it.
            calls: (rows, positions so far) of every decoder call of the variant ``full``.
        """
        encoder, decoder = reference.encoder, reference.decoder
        self.images = batch["net_input"]["patch_images"]
        self.stem = stem
        self.projection = encoder.image_proj
        self.words = decoder.embed_tokens.weight
        self.encoder = [EncoderProducts(layer, encoder.heads) for layer in encoder.layers]
        self.decoder = [DecoderProducts(layer, decoder.heads) for layer in decoder.layers]
        self.calls, self.cross_keys = calls, decoder.cross_pos_k_linear

        def new(*shape: int) -> Tensor:
            return self.words.new_empty(shape).normal_()

        source = batch["net_input"]["src_tokens"]
        sentences, length = source.shape
        heads, channels = encoder.heads, self.words.size(1)
        cells = (self.images.size(2) // 16) * (self.images.size(3) // 16)
        self.text = new(sentences, length, channels)
        tokens = [cells, length] if encoder.cfg.split_modalities else [cells + length]
        self.passes = [  # biases per layer: of image and text, or of both together
            [new(1, heads, t, t) for _ in self.encoder] for t in tokens
        ]
        self.positions = new(1, cells + length, channels)

        rows, length = max(n for n, _ in calls), max(positions for _, positions in calls)
        self.state = new(rows, 1, channels)
        self.query = new(1, decoder.heads, length, channels // decoder.heads)
        self.cache = new(2, rows, decoder.heads, length, channels // decoder.heads)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        x = self.stem(self.images)  # [S, channels, h, w]
        passes = [self.projection(x.flatten(2).transpose(1, 2)), self.text]
        if len(self.passes) == 1:
            passes = [torch.cat(passes, dim=1)]
        for number, biases in enumerate(self.passes):
            for layer, bias in zip(self.encoder, biases):
                passes[number] = layer(passes[number], bias)
        encoded = torch.cat(passes, dim=1)  # [S, T, C]
        sentences = encoded.size(0)
        cross_kv = [layer.cross_key_value(encoded) for layer in self.decoder]
        key = self.cross_keys(self.positions).unflatten(-1, (self.query.size(1), -1))
        cross_bias = self.query @ key.permute(0, 2, 3, 1)  # [1, heads, L, T]
        for step, (rows, length) in enumerate(self.calls):
            x = self.state[:rows]
            bias = cross_bias[:, :, step : step + 1]
            self_kv = self.cache[:, :rows, :, :length]
            for layer, kv in zip(self.decoder, cross_kv):
                x = layer(x, self_kv, kv, bias, sentences)
            x = linear(x, self.words)  # [N, 1, V]
        return x


class Products:
    """Products of both kinds of layer: q, k and v in one, attention, feed-forward."""

    def __init__(self, layer: Any, heads: int) -> None:
        attention = layer.self_attn
        self.heads, self.scaling = heads, attention.scaling
        self.qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = weights(attention.out_proj)
        self.fc1, self.fc2 = weights(layer.fc1), weights(layer.fc2)

    def split(self, x: Tensor, parts: int) -> Any:
        """Return [N, T, parts·C] as [parts, N, heads, T, C / heads]."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def feed_forward(self, x: Tensor) -> Tensor:
        return in_chunks(lambda part: linear(linear(part, *self.fc1), *self.fc2), x)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Any) -> Tensor:
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=self.scaling
        )
        return attended.transpose(1, 2).flatten(2)


class EncoderProducts(Products):
    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        x = linear(self.attend(*self.split(linear(x, *self.qkv), 3), bias), *self.out)
        return self.feed_forward(x)


class DecoderProducts(Products):
    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__(layer, heads)
        cross = layer.encoder_attn
        self.cross_kv = joined(cross.k_proj, cross.v_proj)
        self.cross_query, self.cross_out = weights(cross.q_proj), weights(cross.out_proj)

    def cross_key_value(self, encoded: Tensor) -> Any:
        return self.split(linear(encoded, *self.cross_kv), 2).contiguous()

    def __call__(
        self, x: Tensor, self_kv: Tensor, cross_kv: Tensor, bias: Tensor, sentences: int
    ) -> Tensor:
        """Run the products of one layer.

        Args:
            x: [N, 1, C].
            self_kv: [2, N, heads, L, d], this position included.
            cross_kv: [2, S, heads, T, d].
            bias: [1, heads, 1, T].
        """
        rows, _, channels = x.shape
        query, _, _ = self.split(linear(x, *self.qkv), 3)
        x = linear(self.attend(query, self_kv[0], self_kv[1], None), *self.out)
        query = linear(x, *self.cross_query).view(sentences, rows // sentences, channels)
        (query,) = self.split(query, 1)
        bias = bias.expand(-1, -1, query.size(2), -1)
        attended = self.attend(query, cross_kv[0], cross_kv[1], bias).view(rows, 1, channels)
        x = linear(attended, *self.cross_out)
        return self.feed_forward(x)


def weights(layer: nn.Linear) -> Weights:
    return layer.weight, layer.bias


def joined(*linears: nn.Linear) -> Weights:
    """Concatenate the weights and biases of several linear layers."""
    return (
        torch.cat([layer.weight for layer in linears]),
        torch.cat([layer.bias for layer in linears]),
    )

"""The least that full depth has to compute: its convolutions and products, each in the form that
was the fastest here (the stem's of ``models.stem``, products as ``models.linear`` orders them).

Only convolutions (batch norm folded into them, with their ReLU and additions) and matrix products:
no norms, no GELU, no embeddings, no beam search, no caches to move. Each product is computed once:
the encoder once a sentence, cross-attention keys and values once a sentence and layer, position
keys once a batch, and a decoder step with all its hypotheses as rows of one product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.models.cpu import in_portions, linear

Weights = tuple[Tensor, Tensor]


class Floor:
    """Call it to do the arithmetic of one batch; what it returns means nothing."""

    def __init__(
        self, stem: nn.Module, reference: Any, batch: dict[str, Any], calls: list[tuple[int, int]]
    ) -> None:
        """stem: the model's own. reference: a Reference, whose other weights are used. calls:
        (rows, positions so far) of the decoder's calls that the variant ``full`` really makes."""
        encoder, decoder = reference.encoder, reference.decoder
        self.images = batch["net_input"]["patch_images"]
        self.stem = stem
        self.projection = encoder.image_proj
        self.words = decoder.embed_tokens.weight
        self.encoder = [EncoderProducts(layer, encoder.heads) for layer in encoder.layers]
        self.decoder = [DecoderProducts(layer, decoder.heads) for layer in decoder.layers]
        self.calls, self.cross_keys = calls, decoder.cross_pos_k_linear

        source = batch["net_input"]["src_tokens"]
        sentences, length = source.shape
        heads, like = encoder.heads, self.words
        cells = (self.images.size(2) // 16) * (self.images.size(3) // 16)
        self.text = like.new_empty(sentences, length, like.size(1)).normal_()
        tokens = [cells, length] if encoder.cfg.split_modalities else [cells + length]
        self.passes = [  # the biases of image and text, or of both together
            [like.new_empty(1, heads, t, t).normal_() for _ in self.encoder] for t in tokens
        ]
        self.positions = like.new_empty(1, cells + length, like.size(1)).normal_()

        rows, most = max(n for n, _ in calls), max(seen for _, seen in calls)
        self.state = like.new_empty(rows, 1, like.size(1)).normal_()
        self.query = like.new_empty(1, decoder.heads, most, like.size(1) // decoder.heads)
        self.query.normal_()
        self.cache = like.new_empty(2, rows, decoder.heads, most, self.query.size(3)).normal_()

    @torch.no_grad()
    def __call__(self) -> Tensor:
        x = self.stem(self.images)
        passes = [self.projection(x.flatten(2).transpose(1, 2)), self.text]
        if len(self.passes) == 1:
            passes = [torch.cat(passes, dim=1)]
        for number, biases in enumerate(self.passes):
            for layer, bias in zip(self.encoder, biases):
                passes[number] = layer(passes[number], bias)
        encoded = torch.cat(passes, dim=1)
        sentences = encoded.size(0)
        cross_kv = [layer.cross_key_value(encoded) for layer in self.decoder]
        key = self.cross_keys(self.positions).unflatten(-1, (self.query.size(1), -1))
        cross_bias = self.query @ key.permute(0, 2, 3, 1)
        for step, (rows, seen) in enumerate(self.calls):
            x = self.state[:rows]
            bias = cross_bias[:, :, step : step + 1]
            own = self.cache[:, :rows, :, :seen]
            for layer, kv in zip(self.decoder, cross_kv):
                x = layer(x, own, kv, bias, sentences)
            x = linear(x, self.words)
        return x


class Products:
    """What both kinds of layer compute: q, k and v in one product, attention, feed-forward."""

    def __init__(self, layer: Any, heads: int) -> None:
        attention = layer.self_attn
        self.heads, self.scaling = heads, attention.scaling
        self.qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = weights(attention.out_proj)
        self.fc1, self.fc2 = weights(layer.fc1), weights(layer.fc2)

    def split(self, x: Tensor, parts: int) -> Any:
        """[N, T, parts·C] -> parts of [N, heads, T, C / heads]."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def feed_forward(self, x: Tensor) -> Tensor:
        return in_portions(lambda part: linear(linear(part, *self.fc1), *self.fc2), x)

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

    def __call__(self, x: Tensor, own: Tensor, cross: Tensor, bias: Tensor, sentences: int) -> Any:
        """x [N, 1, C]; own [2, N, heads, L, d], this position in it; cross [2, S, heads, T, d]."""
        rows, _, channels = x.shape
        query, _, _ = self.split(linear(x, *self.qkv), 3)
        x = linear(self.attend(query, own[0], own[1], None), *self.out)
        query = linear(x, *self.cross_query).view(sentences, rows // sentences, channels)
        (query,) = self.split(query, 1)
        bias = bias.expand(-1, -1, query.size(2), -1)
        attended = self.attend(query, cross[0], cross[1], bias).view(rows, 1, channels)
        x = linear(attended, *self.cross_out)
        return self.feed_forward(x)


def weights(layer: nn.Linear) -> Weights:
    return layer.weight, layer.bias


def joined(*linears: nn.Linear) -> Weights:
    """One weight and bias whose product is those of several layers side by side."""
    return (
        torch.cat([layer.weight for layer in linears]),
        torch.cat([layer.bias for layer in linears]),
    )

"""Encoder and decoder layer: pre-norm residual blocks with a second norm inside each branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ofa_exit.models.attention import MultiheadAttention
from ofa_exit.models.cpu import Linear, in_portions

Runs = Optional[Sequence[slice]]
ExtendKV = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FeedForward(nn.Module):
    """fc2(norm(gelu(fc1(norm(x))))): the block that closes both kinds of layer.

    A mixin rather than a sub-module, because checkpoints keep its parameters on the layer itself.
    """

    def add_feed_forward(self, embed_dim: int, ffn_dim: int, activation_dropout: float) -> None:
        self.fc1 = Linear(embed_dim, ffn_dim)
        self.fc2 = Linear(ffn_dim, embed_dim)
        self.ffn_layernorm = nn.LayerNorm(ffn_dim)
        self.final_layer_norm = nn.LayerNorm(embed_dim)
        self.activation_dropout = nn.Dropout(activation_dropout)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def feed_forward(self, x: Tensor) -> Tensor:
        return in_portions(self._feed_forward, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation_dropout(F.gelu(self.fc1(self.final_layer_norm(x))))
        return self.fc2(self.ffn_layernorm(hidden))


class EncoderLayer(FeedForward):
    """One layer of the encoder; ``drop_path`` is the rate at which a sample skips a branch."""

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        num_heads: int,
        scale_factor: float = 2.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim, num_heads, scale_factor, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.attn_ln = nn.LayerNorm(embed_dim)
        self.add_feed_forward(embed_dim, ffn_dim, activation_dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        """x: [B, T, C]; bias: broadcastable to [B, heads, T, T], -inf on padded keys."""
        h = self.self_attn_layer_norm(x)
        h = self.attn_ln(self.self_attn(h, *self.self_attn.project_kv(h), bias))
        x = x + self.drop_path(self.dropout(h))
        return x + self.drop_path(self.dropout(self.feed_forward(x)))


class DecoderLayer(FeedForward):
    """One layer of the decoder."""

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        num_heads: int,
        scale_factor: float = 2.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(embed_dim, num_heads, scale_factor, attention_dropout)
        self.self_attn_ln = nn.LayerNorm(embed_dim)
        self.cross_attn_ln = nn.LayerNorm(embed_dim)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.encoder_attn = MultiheadAttention(
            embed_dim, num_heads, scale_factor, attention_dropout
        )
        self.encoder_attn_layer_norm = nn.LayerNorm(embed_dim)
        self.add_feed_forward(embed_dim, ffn_dim, activation_dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def self_kv(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Self-attention keys and values that this layer makes of its input [N, P, C]."""
        return self.self_attn.project_kv(self.self_attn_layer_norm(state))

    def forward(
        self,
        x: Tensor,
        self_bias: Tensor,
        cross_kv: tuple[Tensor, Tensor],
        cross_bias: Tensor,
        extend_kv: Optional[ExtendKV] = None,
        runs: tuple[Runs, Runs] = (None, None),
    ) -> Tensor:
        """One layer over P positions of N hypotheses; returns [N, P, C].

        x: [N, P, C], the hypotheses of a sentence side by side.
        self_bias: [1, heads, P, K] with -inf on the future.
        cross_kv: keys and values of the S sentences, [S, heads, T, C / heads]; S divides N, and
            the N / S hypotheses of a sentence are queries of one attention, so nothing is copied.
        cross_bias: [S or 1, heads, P, T], or [N, heads, P, T] where hypotheses of a sentence differ
            in it; -inf on padding.
        extend_kv: puts the K/V of these positions beside those of earlier steps and returns all;
            None where the P positions are the whole sequence.
        runs: where the N rows have theirs among the keys and values that ``extend_kv`` returns, and
            the S sentences among ``cross_kv``, if these are of more; see MultiheadAttention.
        """
        h, key, value = self.self_inputs(x)
        if extend_kv is not None:
            key, value = extend_kv(key, value)
        return self.attend(x, h, key, value, self_bias, *cross_kv, cross_bias, *runs)

    def self_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before earlier positions come in: the normed input, and its keys and values."""
        h = self.self_attn_layer_norm(x)
        return h, *self.self_attn.project_kv(h)

    def attend(
        self,
        x: Tensor,
        h: Tensor,
        key: Tensor,
        value: Tensor,
        self_bias: Tensor,
        cross_key: Tensor,
        cross_value: Tensor,
        cross_bias: Tensor,
        self_runs: Runs = None,
        cross_runs: Runs = None,
    ) -> Tensor:
        """The rest of the layer, once the keys and values of all positions are there."""
        h = self.self_attn_ln(self.self_attn(h, key, value, self_bias, self_runs))
        x = x + self.drop_path(self.dropout(h))

        h = self.encoder_attn_layer_norm(x)
        h = self._cross_attend(h, cross_key, cross_value, cross_bias, cross_runs)
        h = self.cross_attn_ln(h)
        x = x + self.drop_path(self.dropout(h))
        return x + self.drop_path(self.dropout(self.feed_forward(x)))

    def _cross_attend(
        self, h: Tensor, key: Tensor, value: Tensor, cross_bias: Tensor, runs: Runs
    ) -> Tensor:
        rows, positions, channels = h.shape
        sentences = key.size(0) if runs is None else sum(run.stop - run.start for run in runs)
        group = rows // sentences
        if group > 1 and cross_bias.size(0) == rows:
            cross_bias = cross_bias.unflatten(0, (sentences, group)).transpose(1, 2).flatten(2, 3)
        elif group > 1:
            cross_bias = cross_bias.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(2, 3)
        h = self.encoder_attn(
            h.reshape(sentences, group * positions, channels), key, value, cross_bias, runs
        )
        return h.reshape(rows, positions, channels)

"""Encoder and decoder layer: pre-norm residual blocks with a second norm inside each branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ofa_exit.models.attention import MultiheadAttention
from ofa_exit.models.cpu import Linear, in_chunks
from ofa_exit.runtime.active_rows import RowSlices

ExtendKV = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FeedForward(nn.Module):
    """fc2(norm(gelu(fc1(norm(x))))): the last block of both kinds of layer.

    A base class, not a sub-module: checkpoints keep its parameters on the layer itself.
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
        """Return the output of the block, without the residual: [B, T, C] to [B, T, C]."""
        return in_chunks(self._feed_forward, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(self.final_layer_norm(x)))  # [B, T, F]
        return self.fc2(self.ffn_layernorm(self.activation_dropout(hidden)))

    def feed_forward_flops(self, tokens: int) -> int:
        """Return the FLOPs of ``feed_forward`` for T tokens: 4·T·C·F."""
        return 4 * tokens * self.fc1.in_features * self.fc1.out_features


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

    def forward(
        self, x: Tensor, bias: Optional[Tensor], running: Optional[Tensor] = None
    ) -> Tensor:
        """Run the layer.

        Args:
            x: [B, T, C].
            bias: broadcastable to [B, heads, Q, T], -inf on padded keys.
            running: Long [B, Q], the tokens to run; the others only give keys and values and keep
                their state. None: all, Q = T.

        Returns: [B, T, C].
        """
        h = self.self_attn_layer_norm(x)
        key, value = self.self_attn.project_kv(h)  # [B, heads, T, d], d = C / heads
        states = x
        if running is not None:
            running = running.unsqueeze(-1).expand(-1, -1, x.size(-1))  # [B, Q, C]
            h, x = h.gather(1, running), x.gather(1, running)
        h = self.attn_ln(self.self_attn(h, key, value, bias))
        x = x + self.drop_path(self.dropout(h))
        x = x + self.drop_path(self.dropout(self.feed_forward(x)))
        return x if running is None else states.scatter(1, running, x)

    def flops(self, tokens: int, running: Optional[int] = None) -> int:
        """Return the FLOPs of the layer for one sample of T tokens, Q of which run (None: all).

        4·T·C² (k and v projections) + 4·Q·C² (q and output projections) + 4·Q·T·C (attention) +
        4·Q·C·F (feed-forward).
        """
        running = tokens if running is None else running
        attention = self.self_attn.kv_flops(tokens) + self.self_attn.flops(running, tokens)
        return attention + self.feed_forward_flops(running)


class DecoderLayer(FeedForward):
    """One layer of the decoder; ``drop_path`` is the rate at which a sample skips a branch."""

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
        """Return the self-attention keys and values of the layer's input [N, P, C]."""
        return self.self_attn.project_kv(self.self_attn_layer_norm(state))

    def forward(
        self,
        x: Tensor,
        self_bias: Tensor,
        cross_kv: tuple[Tensor, Tensor],
        cross_bias: Tensor,
        extend_kv: Optional[ExtendKV] = None,
        row_slices: tuple[RowSlices, RowSlices] = (None, None),
    ) -> Tensor:
        """Run the layer for P positions of N hypotheses of S sentences.

        Args:
            x: [N, P, C]; the N / S hypotheses of a sentence are neighbours.
            self_bias: [1 or N, heads, P, K], -inf on the future.
            cross_kv: keys and values of the sentences, [S, heads, T, C / heads] each.
            cross_bias: [S or 1, heads, P, T], or [N, heads, P, T] if it differs between the
                hypotheses of a sentence; -inf on padding.
            extend_kv: add the K/V of these positions to those of earlier steps and return all.
                None if the P positions are the whole sequence.
            row_slices: the rows of self-attention's K/V that belong to the N hypotheses, and the
                rows of ``cross_kv`` that belong to the S sentences, if those have more rows. See
                MultiheadAttention.

        Returns: [N, P, C].
        """
        self_slices, cross_slices = row_slices
        h = self.self_attn_layer_norm(x)
        key, value = self.self_attn.project_kv(h)  # [N, heads, P, d], d = C / heads
        if extend_kv is not None:
            key, value = extend_kv(key, value)  # [N, heads, K, d] with K positions, these included
        h = self.self_attn_ln(self.self_attn(h, key, value, self_bias, self_slices))
        x = x + self.drop_path(self.dropout(h))

        h = self.encoder_attn_layer_norm(x)
        key, value = cross_kv
        sentences = key.size(0)
        if cross_slices is not None:
            sentences = sum(rows.stop - rows.start for rows in cross_slices)
        # The hypotheses of a sentence share its keys and values without a copy: they are G·P
        # queries of one attention.
        hyps, positions, channels = h.shape
        group = hyps // sentences
        if group > 1:
            if cross_bias.size(0) == hyps:
                cross_bias = cross_bias.unflatten(0, (sentences, group)).transpose(1, 2)
            else:
                cross_bias = cross_bias.unsqueeze(2).expand(-1, -1, group, -1, -1)
            cross_bias = cross_bias.flatten(2, 3)  # from [S or 1, heads, G, P, T] to [.., G·P, T]
        h = h.reshape(sentences, group * positions, channels)
        h = self.encoder_attn(h, key, value, cross_bias, cross_slices)
        h = self.cross_attn_ln(h.reshape(hyps, positions, channels))
        x = x + self.drop_path(self.dropout(h))

        return x + self.drop_path(self.dropout(self.feed_forward(x)))

    def flops(self, keys: int, source: int) -> int:
        """Return the FLOPs of the layer for one token, K self-attention keys and T source tokens.

        8·C² (self-attention's projections) + 4·K·C + 4·C² (cross-attention's query and output
        projections) + 4·T·C + 4·C·F (feed-forward). Cross-attention's K/V are given.
        """
        attention = self.self_kv_flops() + self.self_attn.flops(1, keys)
        return attention + self.encoder_attn.flops(1, source) + self.feed_forward_flops(1)

    def self_kv_flops(self) -> int:
        """Return the FLOPs of ``self_kv`` for one token: 4·C²."""
        return self.self_attn.kv_flops(1)

    def cross_kv_flops(self, source: int) -> int:
        """Return the FLOPs of the cross-attention K/V of one sentence of T tokens: 4·T·C²."""
        return self.encoder_attn.kv_flops(source)

"""OFA's multi-head attention: a position bias on the scores and one learnt factor a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.models.cpu import Linear


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, C] -> [B, heads, T, C / heads]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class MultiheadAttention(nn.Module):
    """softmax(q·kᵀ·scaling + bias)·v, scaled head by head, then projected.

    scaling = (C / heads · scale_factor)^-0.5. The softmax is that of torch's
    scaled_dot_product_attention, which accumulates in float32.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, scale_factor: float = 2.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"{embed_dim} channels cannot be split into {num_heads} heads")
        self.num_heads = num_heads
        self.scaling = (embed_dim // num_heads * scale_factor) ** -0.5
        self.dropout = dropout
        self.c_attn = nn.Parameter(torch.ones(num_heads))
        self.k_proj = Linear(embed_dim, embed_dim)
        self.v_proj = Linear(embed_dim, embed_dim)
        self.q_proj = Linear(embed_dim, embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def project_kv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x [B, T, C], each [B, heads, T, C / heads]."""
        return split_heads(self.k_proj(x), self.num_heads), split_heads(
            self.v_proj(x), self.num_heads
        )

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Optional[Tensor],
        runs: Optional[Sequence[slice]] = None,
    ) -> Tensor:
        """x: queries' input [B, Q, C]; key, value: [B, heads, K, C / heads]; bias: added to the
        scores, broadcastable to [B, heads, Q, K]. Returns [B, Q, C].

        runs: where x's rows have their keys and values, if these are of more rows than x: stretches
        that are attended to one by one, where they are.
        """
        query = split_heads(self.q_proj(x), self.num_heads)
        if runs is None:
            attended = self._attend(query, key, value, bias)
        else:
            parts, end = [], 0
            for run in runs:
                start, end = end, end + run.stop - run.start
                own = bias if bias is None or bias.size(0) == 1 else bias[start:end]
                parts.append(self._attend(query[start:end], key[run], value[run], own))
            attended = torch.cat(parts)
        attended = attended * self.c_attn.view(1, -1, 1, 1)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scaling,
        )

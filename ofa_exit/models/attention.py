"""OFA's multi-head attention: a position bias on the scores and one learned factor per head."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.models.cpu import Linear
from ofa_exit.runtime.active_rows import RowSlices


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return [B, T, C] as [B, heads, T, C / heads]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class MultiheadAttention(nn.Module):
    """Compute softmax(q·kᵀ·scaling + bias)·v, scale each head, then project.

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
        """Return keys and values of x [B, T, C], each [B, heads, T, C / heads]."""
        return split_heads(self.k_proj(x), self.num_heads), split_heads(
            self.v_proj(x), self.num_heads
        )

    def kv_flops(self, tokens: int) -> int:
        """Return the FLOPs of ``project_kv`` for T tokens: 4·T·C²."""
        return 4 * tokens * self.k_proj.in_features**2

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Optional[Tensor],
        row_slices: RowSlices = None,
    ) -> Tensor:
        """Attend from the positions of x to the given keys and values.

        Args:
            x: input of the queries, [B, Q, C].
            key, value: [B, heads, K, C / heads], as ``project_kv`` returns them.
            bias: added to the scores, broadcastable to [B, heads, Q, K], or None.
            row_slices: the rows of ``key`` and ``value`` that belong to the B rows of x, in order,
                if those have more rows. Each slice is read in place.

        Returns: [B, Q, C].
        """
        query = split_heads(self.q_proj(x), self.num_heads)  # [B, heads, Q, d], d = C / heads
        if row_slices is None:
            attended = self._attend(query, key, value, bias)
        else:
            # One attention per slice costs less than a copy of many keys and values.
            parts, end = [], 0
            for rows in row_slices:
                start, end = end, end + rows.stop - rows.start
                own_bias = bias if bias is None or bias.size(0) == 1 else bias[start:end]
                parts.append(self._attend(query[start:end], key[rows], value[rows], own_bias))
            attended = torch.cat(parts)
        attended = attended * self.c_attn.view(1, -1, 1, 1)  # [B, heads, Q, d]
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def flops(self, queries: int, keys: int) -> int:
        """Return the FLOPs of ``forward`` for Q queries and K keys.

        4·Q·C² (query and output projections) + 4·Q·K·C (scores and weighted sum).
        """
        dim = self.q_proj.in_features
        return 4 * queries * dim**2 + 4 * queries * keys * dim

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scaling,
        )

"""The layers of ``benchmarks.reference``: stem, attention, encoder and decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck


@dataclass
class Encoded:
    """Encoder output of N sentences, later hypotheses: [N, T, C], Bool [N, T] and [N, T, C]."""

    states: Tensor
    padding: Tensor
    positions: Tensor


class Stem(nn.Module):
    """ResNet up to layer3."""

    def __init__(self, stages: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for index, blocks in enumerate(stages):
            planes, stage = width * 2**index, []
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                downsample = None
                if stride != 1 or channels != 4 * planes:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, 4 * planes, 1, stride=stride, bias=False),
                        nn.BatchNorm2d(4 * planes),
                    )
                stage.append(Bottleneck(channels, planes, stride, downsample))
                channels = 4 * planes
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        return self.layer3(self.layer2(self.layer1(x)))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, scale_factor: float) -> None:
        super().__init__()
        self.heads = heads
        self.scaling = (dim // heads * scale_factor) ** -0.5
        self.c_attn = nn.Parameter(torch.ones(heads))
        self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.q_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """Return [N, T, C] as [N, heads, T, C / heads]."""
        return x.view(x.size(0), x.size(1), self.heads, -1).transpose(1, 2).contiguous()

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor, padding: Optional[Tensor]
    ) -> Tensor:
        """Attend from x [N, Q, C] to K keys.

        Args:
            key, value: [N, heads, K, d].
            bias: [N, heads, Q, K].
            padding: Bool [N, K], True on keys to ignore, or None.
        """
        rows, queries, channels = x.shape
        query = self.split(self.q_proj(x) * self.scaling).flatten(0, 1)
        scores = torch.bmm(query, key.flatten(0, 1).transpose(1, 2)).view(bias.shape)
        scores = scores + bias
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None, :], float("-inf"))
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).type_as(scores)
        attended = torch.bmm(weights.flatten(0, 1), value.flatten(0, 1))
        attended = attended.view(rows, self.heads, queries, -1) * self.c_attn.view(1, -1, 1, 1)
        return self.out_proj(attended.transpose(1, 2).reshape(rows, queries, channels))


class FeedForward(nn.Module):
    def __init__(self, dim: int, ffn: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.ffn_layernorm, self.final_layer_norm = nn.LayerNorm(ffn), nn.LayerNorm(dim)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(self.final_layer_norm(x)))))


class EncoderLayer(FeedForward):
    def __init__(self, cfg: Any) -> None:
        dim, heads = cfg.encoder_embed_dim, cfg.encoder_attention_heads
        super().__init__(dim, cfg.encoder_ffn_embed_dim)
        self.self_attn = Attention(dim, heads, cfg.attn_scale_factor)
        self.self_attn_layer_norm, self.attn_ln = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, bias: Tensor, padding: Optional[Tensor]) -> Tensor:
        h = self.self_attn_layer_norm(x)
        x = x + self.attn_ln(self.self_attn(h, *self.self_attn.key_value(h), bias, padding))
        return x + self.feed_forward(x)


class DecoderLayer(FeedForward):
    def __init__(self, cfg: Any) -> None:
        dim, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
        super().__init__(dim, cfg.decoder_ffn_embed_dim)
        self.self_attn = Attention(dim, heads, cfg.attn_scale_factor)
        self.self_attn_layer_norm, self.self_attn_ln = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.encoder_attn = Attention(dim, heads, cfg.attn_scale_factor)
        self.encoder_attn_layer_norm, self.cross_attn_ln = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def cross_kv(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder_attn.key_value(states)

    def forward(
        self,
        x: Tensor,
        encoded: Encoded,
        self_bias: Tensor,
        cross_bias: Tensor,
        saved: dict[str, tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Run the layer for the newest position x [N, 1, C].

        Args:
            self_bias: [N, heads, 1, L].
            cross_bias: [N, heads, 1, T].
            saved: K/V of this layer, extended in place.
        """
        h = self.self_attn_layer_norm(x)
        key, value = self.self_attn.key_value(h)
        if "self" in saved:
            key = torch.cat([saved["self"][0], key], dim=2)
            value = torch.cat([saved["self"][1], value], dim=2)
        saved["self"] = key, value
        x = x + self.self_attn_ln(self.self_attn(h, key, value, self_bias, None))
        if "cross" not in saved:
            saved["cross"] = self.cross_kv(encoded.states)
        h = self.encoder_attn_layer_norm(x)
        h = self.encoder_attn(h, *saved["cross"], cross_bias, encoded.padding)
        x = x + self.cross_attn_ln(h)
        return x + self.feed_forward(x)


def position_bias(query: Tensor, key: Tensor, heads: int, scaling: float) -> Tensor:
    """Return the scores of projected positions: [N, Q, C], [N, K, C] -> [N, heads, Q, K]."""
    query = query.view(*query.shape[:2], heads, -1).transpose(1, 2) * scaling
    key = key.view(*key.shape[:2], heads, -1).transpose(1, 2)
    return torch.matmul(query, key.transpose(2, 3))


def table_bias(table: nn.Embedding, buckets: Tensor) -> Tensor:
    """Look up buckets, Long [N, Q, K] -> [N, heads, Q, K]."""
    return table(buckets).permute(0, 3, 1, 2).contiguous()

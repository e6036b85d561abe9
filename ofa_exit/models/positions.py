"""Positions: bucket tables of the relative biases, and a cache of what does not change."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def token_buckets(bucket_size: int, max_position: int) -> Tensor:
    """Return the bucket of every pair (i, j) of text positions.

    Up to half the bucket size, the bucket is the signed distance i - j. Beyond, buckets widen
    logarithmically. All are shifted to start at 0.

    Returns: Long [max_position, max_position].
    """
    position = torch.arange(max_position)
    distance = position[:, None] - position[None, :]  # [max_position, max_position]
    near = bucket_size // 2
    # |i - j| = near maps to near, |i - j| = max_position - 1 to 2·near - 1.
    magnitude = distance.abs().clamp(min=near).double()
    far = torch.log(magnitude / near) / math.log((max_position - 1) / near) * (near - 1)
    far = (torch.ceil(far) + near).long() * distance.sign()
    return torch.where(distance.abs() <= near, distance, far) + bucket_size - 1


def image_buckets(bucket_size: int) -> Tensor:
    """Return the bucket of every pair of image position ids (2-D offsets, as in Swin).

    Ids 1 to bucket_size² are grid cells, row by row. Id 0 is no cell: its pairs use the last three
    of the (2·bucket_size - 1)² + 3 buckets.

    Returns: Long [bucket_size² + 1, bucket_size² + 1].
    """
    side = 2 * bucket_size - 1
    total = side * side + 3
    cells = torch.stack(
        torch.meshgrid(torch.arange(bucket_size), torch.arange(bucket_size), indexing="ij")
    ).flatten(1)  # [2, bucket_size²]: row and column of every cell
    dy, dx = cells[:, :, None] - cells[:, None, :]  # [bucket_size², bucket_size²] each
    buckets = torch.empty(bucket_size**2 + 1, bucket_size**2 + 1, dtype=torch.long)
    buckets[1:, 1:] = (dy + bucket_size - 1) * side + (dx + bucket_size - 1)
    buckets[0, :] = total - 3
    buckets[:, 0] = total - 2
    buckets[0, 0] = total - 1
    return buckets


def grid_ids(height: int, width: int, bucket_size: int, device: torch.device) -> Tensor:
    """Return the image position ids of a height x width grid, Long [height·width].

    Raises:
        ValueError: if the grid does not fit into bucket_size x bucket_size.
    """
    if max(height, width) > bucket_size:
        raise ValueError(
            f"an image of {height}x{width} tokens exceeds --image-bucket-size {bucket_size}. "
            "Use a smaller --patch-image-size or a larger bucket size."
        )
    rows = torch.arange(height, device=device)[:, None] * bucket_size
    return (rows + torch.arange(width, device=device)[None, :] + 1).flatten()


def grid_embeddings(
    table: nn.Embedding, grid: tuple[int, int], bucket_size: int, side: Optional[int] = None
) -> Tensor:
    """Return the embeddings [1, h·w, C] of the cells of a grid.

    Args:
        table: embeddings of the image position ids.
        grid: (h, w), the size of the feature map.
        side: a grid of more cells than side x side gets the embeddings of side x side, resized
            bilinearly. None: never.
    """
    height, width = grid
    device = table.weight.device
    if side is None or height * width <= side * side:
        return table(grid_ids(height, width, bucket_size, device)).unsqueeze(0)
    cells = table(grid_ids(side, side, bucket_size, device)).T.reshape(1, -1, side, side)
    return F.interpolate(cells, size=grid, mode="bilinear").flatten(2).transpose(1, 2)


def code_position_ids(code_image_size: int, bucket_size: int) -> Tensor:
    """Return the positions of generated image codes, a buffer that text does not use."""
    window = code_image_size // 8
    cells = (torch.arange(window)[:, None] * bucket_size + torch.arange(window)[None, :] + 1).view(
        -1
    )
    return torch.cat([torch.zeros(1, dtype=torch.long), cells, torch.full((769,), 1024)])


def zero_table(rows: int, columns: int) -> nn.Embedding:
    """Return an embedding of zeros, as relative biases start."""
    table = nn.Embedding(rows, columns)
    nn.init.zeros_(table.weight)
    return table


def relative_bias(table: nn.Module, buckets: Tensor) -> Tensor:
    """Look up ``buckets`` Long [Q, K] in ``table`` [buckets, heads]; return [1, heads, Q, K]."""
    return table(buckets).permute(2, 0, 1).unsqueeze(0)


# Shapes to keep per kind. Biases over image tokens take hundreds of megabytes in large models.
KEPT_SHAPES = {
    "image": 1,
    "joint": 1,
    "text": 32,
    "source": 32,
    "decoder": 32,
    "cross": 32,
    "folded": 4,
    "prompt": 64,  # more than the settings of a sweep, each of which exits in its own way
}


class ShapeCache(nn.Module):
    """Module that caches terms which depend on nothing but its weights and a shape.

    Such terms are position biases, and convolutions with their batch norm folded in. The text pass
    of a constant prompt is one as well: its "shape" is the prompt and the gate. Terms are
    cached in eval mode, without gradients and autocast. The cache is cleared on ``train()``, on
    loading a state dict, and on moves between devices or precisions. Code that changes weights in
    another way must call ``forget_shapes``.
    """

    def forget_shapes(self) -> None:
        """Clear the cache."""
        self.__dict__["_by_shape"] = {}

    def once_per_shape(self, kind: str, shape: Hashable, compute: Callable[[], Any]) -> Any:
        """Return what ``compute`` returns for this shape, from the cache if possible."""
        is_autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if self.training or torch.is_grad_enabled() or is_autocast:
            return compute()
        cached = self.__dict__.setdefault("_by_shape", {}).setdefault(kind, {})
        if shape not in cached:
            if len(cached) >= KEPT_SHAPES[kind]:
                cached.pop(next(iter(cached)))  # the oldest
            cached[shape] = compute()
        return cached[shape]

    def train(self, mode: bool = True) -> ShapeCache:
        self.forget_shapes()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.forget_shapes()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_shapes()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_by_shape"}


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple that is no less than ``length``."""
    return -(-length // multiple) * multiple

"""The images of a batch that are encoded, and whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor


@dataclass
class Pictures:
    """images: [I, 3, H, W], those to encode. present: Bool [I], False for zeros instead of one.
    rows: Long [S], the image of each sentence, None where each has its own; I for none, which
    occurs if ``missing``.
    """

    images: Tensor
    present: Tensor
    rows: Optional[Tensor]
    missing: bool

    @classmethod
    def of(
        cls, images: Tensor, masks: Tensor, rows: Optional[Tensor], pictured: Optional[Tensor]
    ) -> Pictures:
        """Of a batch as ``Encoder.forward`` gets it."""
        if pictured is None:
            if rows is not None:
                masks = masks.new_zeros(len(images)).scatter(0, rows, masks)
            return cls(images, masks, rows, False)
        places = pictured.new_full((len(images),), len(pictured))
        places[pictured] = torch.arange(len(pictured), device=places.device)
        return cls(
            images[pictured],
            masks.new_ones(len(pictured)),
            places if rows is None else places[rows],
            True,
        )

    def spread(self, values: Tensor) -> Tensor:
        """What each sentence has of values [I, …]: [S, …], 0 without an image."""
        if self.rows is None:
            return values
        if self.missing:
            values = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
        return values[self.rows]

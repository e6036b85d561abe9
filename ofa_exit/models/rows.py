"""Which rows go on: the only places of the runtime that look at data to decide shapes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(values: Tensor) -> list:
    """Reads a small tensor back: the one place where the runtime waits for its device."""
    return values.tolist()


def surviving_rows(leaving: Tensor) -> tuple[Tensor, int]:
    """Splits rows into those that stay and those that leave, with one host read.

    leaving: Bool [B]. Returns an order Long [B] with the staying rows first (both parts in their
    old order) and the number that stay.
    """
    order = torch.sort(leaving.to(torch.uint8), stable=True).indices
    (gone,) = to_host(leaving.sum().unsqueeze(0))
    return order, leaving.numel() - gone


def surviving_sentences(new_order: Tensor, group: int) -> Tensor:
    """Sentences that still have hypotheses after beam search dropped the finished ones.

    new_order: Long [rows], indices of the hypotheses kept, ``group`` a sentence and those of a
    sentence side by side. Returns Long [rows / group]; reads nothing back from the device.
    """
    return torch.div(new_order.view(-1, group)[:, 0], group, rounding_mode="floor")

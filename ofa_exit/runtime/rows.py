"""Which rows go on: the only places of the runtime that look at data to decide shapes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(values: Tensor) -> list:
    """Reads a small tensor back: the one place where the runtime waits for its device."""
    return values.tolist()


def from_host(values: list, device: torch.device) -> Tensor:
    """A small tensor on the device, which is not waited for: torch.tensor(…, device=…) would be."""
    return torch.tensor(values).to(device, non_blocking=True)


def rows_of(sentences: list[int], group: int, device: torch.device) -> Tensor:
    """Rows of sentences whose ``group`` hypotheses sit side by side, Long [group·sentences]."""
    return from_host([group * s + i for s in sentences for i in range(group)], device)


def stretches(places: list[int]) -> list[slice]:
    """Neighbours among increasing numbers as slices: [1, 2, 5] -> 1:3, 5:6."""
    found: list[slice] = []
    for place in places:
        if found and found[-1].stop == place:
            found[-1] = slice(found[-1].start, place + 1)
        else:
            found.append(slice(place, place + 1))
    return found


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

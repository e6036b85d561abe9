"""Small tensors between host and device. `to_host` is the only host read during a pass."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(values: Tensor) -> list:
    """Return the values of a small tensor, which waits for the device."""
    return values.tolist()


def from_host(values: list, device: torch.device) -> Tensor:
    """Return a small tensor on the device, without waiting for the device."""
    return torch.tensor(values).to(device, non_blocking=True)


def to_slices(indices: list[int]) -> list[slice]:
    """Return increasing numbers as slices of neighbours: [1, 2, 5] -> 1:3, 5:6."""
    slices: list[slice] = []
    for index in indices:
        if slices and slices[-1].stop == index:
            slices[-1] = slice(slices[-1].start, index + 1)
        else:
            slices.append(slice(index, index + 1))
    return slices


def surviving_sentences(new_order: Tensor, group: int) -> Tensor:
    """Return the sentences that still have hypotheses after beam search dropped finished ones.

    Nothing is read on the host.

    Args:
        new_order: Long [rows], the hypotheses kept, those of a sentence side by side.
        group: hypotheses per sentence.

    Returns:
        Long [rows / group].
    """
    return torch.div(new_order.view(-1, group)[:, 0], group, rounding_mode="floor")

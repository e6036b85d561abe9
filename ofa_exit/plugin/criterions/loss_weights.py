"""Learned weights of the terms of a loss."""

from collections.abc import Callable
from typing import Any

import torch
from fairseq.distributed import utils as distributed
from torch import Tensor, nn


class LossWeights(nn.Module):
    """Weights K·softmax(α) of the K terms of a loss, with an Adam of their own.

    Their mean stays 1, so they cannot reduce all terms. A checkpoint holds α with Adam's state. α
    needs no gradient for fairseq, so fairseq's optimizer, its weight decay and its clipping leave
    it alone. α is in float32, also under ``--fp16`` and ``--bf16``.
    """

    def __init__(self, terms: int, lr: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(terms), requires_grad=False)
        self.adam = torch.optim.Adam([self.alpha], lr=lr)

    def forward(self) -> Tensor:
        """Return the weights [K]."""
        return self.alpha.numel() * self.alpha.softmax(0)

    def add_gradient(self, slopes: Tensor) -> None:
        """Add to α's gradient that of an objective with derivatives [K] in the weights."""
        weights = self()
        gradient = weights * (slopes - (self.alpha.softmax(0) * slopes).sum())
        before = self.alpha.grad
        self.alpha.grad = gradient if before is None else before + gradient

    def train(self, mode: bool = True) -> "LossWeights":
        """Forget the gradient of an update that was skipped, as those with overflows are.

        fairseq's trainer calls this before every update. It calls no ``zero_grad`` of a criterion.
        """
        self.alpha.grad = None
        return super().train(mode)

    def step(self) -> None:
        """Update α by the mean gradient of all processes, if there is one.

        A gradient that is not finite counts as 0: otherwise α and Adam's moments would be NaN for
        all later updates.
        """
        if self.alpha.grad is None:
            return
        processes = distributed.get_data_parallel_world_size()
        if processes > 1:
            distributed.all_reduce(self.alpha.grad, distributed.get_data_parallel_group())
            self.alpha.grad /= processes
        # No branch on the host: that would wait for the device.
        is_finite = self.alpha.grad.isfinite().all()
        self.alpha.grad = torch.where(is_finite, self.alpha.grad, 0.0)
        self.adam.step()
        self.alpha.grad = None

    def get_extra_state(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        lr = self.adam.param_groups[0]["lr"]
        self.adam.load_state_dict(state)
        self.adam.param_groups[0]["lr"] = lr  # that of the command line

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(lambda x: fn(x).float(), recurse)

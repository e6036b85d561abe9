"""LeeBERT's criterion, ready to train, with loss weights of choice."""

from __future__ import annotations

from typing import Any

import torch

from helpers.exit_samples import criterion
from ofa_exit.plugin.criterions.leebert import LeeBertLoss


class Optimizer:
    """fairseq's, which steps nothing here."""

    def step(self) -> None:
        pass


def prepared(built: Any, **options: Any) -> LeeBertLoss:
    loss = criterion("leebert_loss", **options)
    loss.prepare_training(built)
    return loss


def set_alpha(loss: LeeBertLoss, seed: int = 5) -> torch.Tensor:
    alpha = torch.randn(len(loss.terms), generator=torch.Generator().manual_seed(seed))
    loss.loss_weights.alpha.copy_(alpha)
    return alpha

"""A model with exits that is ready for training, and BLIPEE's criterion."""

from types import SimpleNamespace

import torch
from fairseq.data import Dictionary

from helpers import small_models as helpers
from ofa_exit.plugin.criterions.blipee import (
    CLASSIFIER_GROUP,
    TRANSFORMER_GROUP,
    BlipeeAdversarial,
    BlipeeConfig,
)

TASK = SimpleNamespace(target_dictionary=Dictionary())
GROUPS = {TRANSFORMER_GROUP, CLASSIFIER_GROUP}


def model(exits: str | None = "1,3", **options):
    built = helpers.nano(exit_layers=exits, **options)
    if exits:
        criterion(feature_classifier_dim=24).prepare_training(built)
    return built


def criterion(**options) -> BlipeeAdversarial:
    config = BlipeeConfig(**{"sentence_avg": False, **options})
    return BlipeeAdversarial.build_criterion(config, TASK).train()


def gradients(built) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in built.named_parameters() if p.grad is not None and p.grad.any()}

"""Self-distillation of ``mue_loss``: its options, and the average of a model as a teacher."""

import copy
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from ofa_exit.objectives.distillation import Distillation

logger = logging.getLogger(__name__)

TEACHERS = ("last", "average")


@dataclass
class SelfDistillationConfig(FairseqDataclass):
    self_distil: float = field(
        default=0.0,
        metadata={
            "help": "share of the loss of each layer before the last that comes from a teacher's "
            "words instead of the labels, 0 to 1"
        },
    )
    self_distil_temperature: float = field(
        default=1.0, metadata={"help": "temperature of both distributions in --self-distil"}
    )
    self_distil_teacher: str = field(
        default="last",
        metadata={
            "help": "teacher of --self-distil: last, the last layer, or average, the last layer of "
            "a moving average of the model's weights"
        },
    )
    self_distil_decay: float = field(
        default=0.999,
        metadata={"help": "share of that average that an update keeps, below 1"},
    )


def self_distillation(share: float, temperature: float, teacher: str, decay: float) -> Distillation:
    """Return how layers learn from the last one, for the options of ``SelfDistillationConfig``.

    Raises:
        ValueError: an option is invalid.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--self-distil is {share}; give a number from 0 to 1")
    check_temperature("--self-distil-temperature", temperature)
    if teacher not in TEACHERS:
        raise ValueError(f"--self-distil-teacher {teacher!r}: choose from {', '.join(TEACHERS)}")
    if not 0 <= decay < 1:
        raise ValueError(f"--self-distil-decay is {decay}; give 0 or more, below 1")
    return Distillation("final" if share else "none", temperature, share, 1 - share)


def check_temperature(flag: str, temperature: float) -> None:
    """Raise ValueError unless the temperature is positive and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{flag} is {temperature}; give a number above 0")


class AveragedModel:
    """A frozen copy of a model that follows it: θ̄ ← d·θ̄ + (1 - d)·θ after every update.

    The copy is in float32 and in eval mode. Its batch statistics are the model's own. It is not
    saved: a resumed training starts the average from the weights that it loaded.
    """

    def __init__(self, model: Any, decay: float) -> None:
        while hasattr(model, "module"):  # data-parallel wrappers
            model = model.module
        self.model = copy.deepcopy(model).float().requires_grad_(False).eval()
        self.decay = decay
        self.num_updates = model.num_updates
        logger.info("the averaged teacher starts from the weights at update %d", self.num_updates)

    @torch.no_grad()
    def follow(self, model: Any) -> None:
        """Move the average towards ``model``, once per update, however often it is called."""
        if model.num_updates == self.num_updates:
            return
        self.num_updates = model.num_updates
        for average, parameter in zip(self.model.parameters(), model.parameters()):
            average.lerp_(parameter.to(average.dtype), 1 - self.decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers()):
            kept.copy_(buffer)
        self.model.eval()  # forget what was cached for the former weights

    @torch.no_grad()
    def features(self, net_input: dict[str, Any]) -> Tensor:
        """Return the last layer's states after the final norm, [B, L, C]."""
        inputs = {
            name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in net_input.items()
        }
        return self.model(**inputs, features_only=True)[0]

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Return the word scores [M, V] of features [M, C]."""
        return self.model.output_layer(features)

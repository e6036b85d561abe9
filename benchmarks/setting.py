"""The setting of a benchmark: model, batch and beam search."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from omegaconf import OmegaConf
from torch import Tensor

from ofa_exit.models.archs import ARCHS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.search.ensemble import WatchedEnsemble
from ofa_exit.testing import build_with_weights, random_images, random_tokens

Hypotheses = list[list[dict[str, Tensor]]]


@dataclass(frozen=True)
class Setting:
    """One batch of one model.

    Args:
        steps: number of decoder calls, and of tokens of every hypothesis, end of sentence included.
        text_length: source tokens of every sentence, bos and eos included.
        clock: one of ``timing.CLOCKS``.
        joint: encode image and text together, as official checkpoints do.
    """

    arch: str = "ofa_base"
    image_size: int = 480
    batch_size: int = 1
    beam: int = 5
    steps: int = 17
    text_length: int = 8
    vocabulary: int = 59457
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    seed: int = 1
    clock: str = "wall"
    joint: bool = False

    def __post_init__(self) -> None:
        if self.arch not in ARCHS:
            raise ValueError(f"--arch {self.arch!r}: choose from {', '.join(ARCHS)}")
        for name in ("image_size", "batch_size", "beam", "steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
        if self.image_size % 16:
            raise ValueError(f"--image-size {self.image_size} is not a multiple of 16")
        if self.clock == "cpu" and self.device != "cpu":
            raise ValueError(f"--clock cpu does not measure {self.device}: use --clock wall")
        if self.text_length < 2:
            raise ValueError("--text-length must be at least 2, for bos and eos")
        if self.text_length == self.image_tokens:
            raise ValueError(
                f"--text-length {self.text_length} equals the number of image tokens. The timers "
                "distinguish image and text layers by their tokens: choose another length."
            )

    @property
    def image_tokens(self) -> int:
        return (self.image_size // 16) ** 2

    def __str__(self) -> str:
        joint = ", joint" if self.joint else ""
        return f"batch {self.batch_size}, beam {self.beam}, {self.image_size} px{joint}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def build(setting: Setting) -> OFAModel:
    """Build the model with weights drawn from their names: float32, on the CPU, in eval mode."""
    split = not setting.joint
    return build_with_weights(ARCHS[setting.arch], setting.vocabulary, split_modalities=split)


def prepare(model: Any, setting: Setting) -> Any:
    """Prepare a model for inference, as fairseq-generate does."""
    model.to(device=setting.device, dtype=getattr(torch, setting.dtype))
    model.requires_grad_(False)
    model.prepare_for_inference_(OmegaConf.create({"generation": asdict(GenerationConfig())}))
    return model


def sample(setting: Setting) -> dict[str, Any]:
    """Return one batch for fairseq's generator: an image and a text of full length per sentence."""
    sentences, size = setting.batch_size, setting.image_size
    source = random_tokens(
        f"src{setting.seed}", (sentences, setting.text_length), setting.vocabulary
    )
    source[:, 0], source[:, -1] = 0, 2
    images = random_images(f"image{setting.seed}", (sentences, 3, size, size))
    net_input = {
        "src_tokens": source,
        "src_lengths": torch.full((sentences,), setting.text_length),
        "patch_images": images.to(getattr(torch, setting.dtype)),
        "patch_masks": torch.ones(sentences, dtype=torch.bool),
        "step_limit": torch.full((sentences,), setting.steps),
    }
    on_device = {name: value.to(setting.device) for name, value in net_input.items()}
    return {
        "net_input": {**on_device, "padded": False},
        "id": torch.arange(sentences, device=setting.device),
    }


def generator(model: Any, setting: Setting) -> SequenceGenerator:
    """Return stock beam search in which every hypothesis ends at the same step.

    This package's model gets the ensemble of the captioning task.
    """
    ensemble = WatchedEnsemble if isinstance(model, OFAModel) else EnsembleModel
    return SequenceGenerator(
        ensemble([model]),
        model.decoder.dictionary,
        beam_size=setting.beam,
        min_len=setting.steps - 1,
        max_len_b=setting.steps - 1,
    )


def generate(search: SequenceGenerator, batch: dict[str, Any]) -> Hypotheses:
    return search.generate([], batch, bos_token=search.tgt_dict.bos())

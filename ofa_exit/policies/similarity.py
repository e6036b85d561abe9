"""MuE's policy: exit where the states of consecutive layers have saturated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

from ofa_exit.policies.base import ExitPolicy, Gate, GateInput, option, per_row
from ofa_exit.policies.measures import (
    hidden_saturation,
    sample_saturation,
    token_mean_saturation,
)
from ofa_exit.policies.schedules import NEVER, THRESHOLD_SCHEDULES

ENCODER_SIMILARITIES = {"sample": sample_saturation, "token_mean": token_mean_saturation}


@dataclass
class SimilarityExit(ExitPolicy):
    """Exit after a layer if the cosine of its input and output exceeds a threshold.

    MuE Eqs. 7-11 and Algorithm 1. A threshold of 1 or more means never, since the cosine of equal
    vectors may round to a little over 1.
    """

    image_threshold: float = option(
        0.9,
        "exit the image pass of a --split-modalities model once the cosine similarity of "
        "consecutive layers exceeds this threshold; 1 or more: never (default: 0.9)",
        at_least=0,
    )
    text_threshold: float = option(
        0.95,
        "the same for the text pass of a --split-modalities model (default: 0.95)",
        at_least=0,
    )
    encoder_threshold: float = option(
        NEVER,
        "the same for the one pass of a model without --split-modalities (default: never)",
        at_least=0,
    )
    decoder_threshold: float = option(
        0.99,
        "the same for each word in the decoder (default: captioning 0.99, answers 0.95)",
        at_least=0,
    )
    schedule: str = option(
        "decay",
        "how the decoder's threshold changes over the words: "
        f"{', '.join(THRESHOLD_SCHEDULES)} (default: captioning decay, answers static)",
        choices=THRESHOLD_SCHEDULES,
    )
    beta: float = option(0.95, "beta of the decay, 0 to 1 (default: 0.95)", at_least=0, at_most=1)
    tau: float = option(1.0, "tau of the decay (default: 1)", at_least=0)
    encoder_similarity: str = option(
        "sample",
        "what the encoder compares: one cosine over all states of a sample, or the mean over its "
        f"tokens: {', '.join(ENCODER_SIMILARITIES)} (default: sample)",
        choices=ENCODER_SIMILARITIES,
    )

    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        # Appendix of the paper.
        "mue-paper": {
            "caption": dict(
                image_threshold=0.9, text_threshold=0.95, decoder_threshold=0.99, schedule="decay"
            ),
            "answer": dict(
                image_threshold=0.9, text_threshold=0.95, decoder_threshold=0.95, schedule="static"
            ),
        },
        # Evaluation scripts of the released code.
        "mue-released": {
            "caption": dict(
                image_threshold=0.99, text_threshold=0.7, decoder_threshold=0.9, schedule="official"
            ),
            "answer": dict(
                image_threshold=0.7, text_threshold=0.99, decoder_threshold=0.7, schedule="static"
            ),
        },
    }

    @classmethod
    def defaults(cls, task: str) -> dict[str, Any]:
        return cls.presets["mue-paper"].get(task, {})

    def check(self, model: Any) -> None:
        if model.split_modalities and "encoder_threshold" in self.given:
            raise ValueError(
                "--exit-encoder-threshold is for a joint encoder; this model has "
                "--split-modalities: use --exit-image-threshold and --exit-text-threshold"
            )
        for part in ("image", "text"):
            if not model.split_modalities and f"{part}_threshold" in self.given:
                raise ValueError(
                    f"--exit-{part}-threshold needs a model with --split-modalities; this one runs "
                    "image and text together: use --exit-encoder-threshold"
                )
        unused = [f"--exit-{name}" for name in ("beta", "tau") if name in self.given]
        if unused and self.schedule != "decay":
            raise ValueError(
                f"{', '.join(unused)} belongs to --exit-schedule decay; the schedule is "
                f"{self.schedule}"
            )

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        return ()

    def gate(self, part: str) -> Optional[Gate]:
        name = "encoder" if part == "joint" else part
        never = getattr(self, f"{name}_threshold") >= 1
        return None if never else super().gate(part)

    def image_gate(self, seen: GateInput) -> Tensor:
        return self._saturation(seen) > self.image_threshold

    def text_gate(self, seen: GateInput) -> Tensor:
        return self._saturation(seen) > self.text_threshold

    def joint_gate(self, seen: GateInput) -> Tensor:
        return self._saturation(seen) > self.encoder_threshold

    def _saturation(self, seen: GateInput) -> Tensor:
        """Cosine of each sample's states before and after the layer, [N]."""
        similarity = ENCODER_SIMILARITIES[self.encoder_similarity]
        return similarity(seen.previous, seen.current, seen.padding_mask)

    def decoder_gate(self, seen: GateInput) -> Tensor:
        threshold = seen.memory.get("threshold")
        if threshold is None:  # the first layer of a step: all others have the same
            assert seen.step is not None and seen.step_limit is not None
            schedule = THRESHOLD_SCHEDULES[self.schedule]
            threshold = schedule(
                self.decoder_threshold, seen.step, seen.step_limit, self.beta, self.tau
            )
            threshold = torch.where(threshold < 1, threshold, NEVER)
            seen.memory["threshold"] = threshold = per_row(threshold, len(seen.current))
        return hidden_saturation(seen.previous, seen.current) > threshold

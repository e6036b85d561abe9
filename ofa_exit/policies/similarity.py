"""MuE's policy: exit where the states of consecutive layers have saturated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from ofa_exit.policies.base import ExitPolicy, Gate, GateAnswer, GateInput, option
from ofa_exit.policies.measures import (
    hidden_saturation,
    sample_saturation,
    token_mean_saturation,
)
from ofa_exit.policies.schedules import (
    beta_option,
    reject_unused_parameters,
    schedule_option,
    tau_option,
    threshold_of_step,
)
from ofa_exit.policies.thresholds import (
    NEVER,
    PerLayer,
    at_layer,
    numbers_of,
    reject_wrong_count,
    threshold_option,
)

ENCODER_TRIES = (NEVER, 0.99, 0.97, 0.95, 0.9, 0.85)
DECODER_TRIES = (NEVER, 0.995, 0.99, 0.98, 0.97, 0.93, 0.9, 0.85)
ENCODER_SIMILARITIES = {"sample": sample_saturation, "token_mean": token_mean_saturation}


def image_threshold_option(default: float) -> Any:
    """Declare the field ``image_threshold`` of an ``EncoderSimilarity``."""
    return threshold_option(
        default,
        "exit the image pass of a --split-modalities model once the cosine similarity of "
        "consecutive layers exceeds this threshold (1 or more: never)",
        "0.9, or never for learned",
        tries=ENCODER_TRIES,
    )


def text_threshold_option(default: float) -> Any:
    """Declare the field ``text_threshold``."""
    return threshold_option(
        default,
        "the same for the text pass of a --split-modalities model",
        "0.95, or never for learned",
        tries=ENCODER_TRIES,
    )


def encoder_threshold_option() -> Any:
    """Declare the field ``encoder_threshold``."""
    return threshold_option(
        NEVER,
        "the same for the one pass of a model without --split-modalities",
        "never",
        tries=ENCODER_TRIES,
    )


def encoder_similarity_option() -> Any:
    """Declare the field ``encoder_similarity``."""
    return option(
        "sample",
        "what the encoder compares: one cosine over all states of a sample, or the mean over its "
        f"tokens: {', '.join(ENCODER_SIMILARITIES)} (default: sample)",
        choices=ENCODER_SIMILARITIES,
    )


class EncoderSimilarity(ExitPolicy):
    """Exits in the encoder by the cosine of a layer's input and output (MuE Eqs. 7-9).

    What the decoder does is the subclass's. Its words leave without a head. The attributes are
    fields of the subclass: see ``image_threshold_option`` and the functions after it.
    """

    decoder_field: ClassVar[str]
    """Name of the field that holds the decoder's threshold."""
    image_threshold: PerLayer
    text_threshold: PerLayer
    encoder_threshold: PerLayer
    encoder_similarity: str

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
        for part, layers in (
            ("image", model.encoder_layers),
            ("text", model.encoder_layers),
            ("encoder", model.encoder_layers),
            ("decoder", model.decoder_layers),
        ):
            stack = "decoder" if part == "decoder" else "encoder"
            flag = f"--exit-{self._threshold_field(part).replace('_', '-')}"
            reject_wrong_count(flag, self._thresholds(part), layers, stack)

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        return ()

    def _threshold_field(self, part: str) -> str:
        return self.decoder_field if part == "decoder" else f"{part}_threshold"

    def _thresholds(self, part: str) -> PerLayer:
        return getattr(self, self._threshold_field(part))

    def gate(self, part: str) -> Optional[Gate]:
        thresholds = self._thresholds("encoder" if part == "joint" else part)
        never = min(numbers_of(thresholds)) >= 1
        return None if never else super().gate(part)

    def image_gate(self, seen: GateInput) -> GateAnswer:
        return self._saturated(seen, self.image_threshold)

    def text_gate(self, seen: GateInput) -> GateAnswer:
        return self._saturated(seen, self.text_threshold)

    def joint_gate(self, seen: GateInput) -> GateAnswer:
        return self._saturated(seen, self.encoder_threshold)

    def _saturated(self, seen: GateInput, thresholds: PerLayer) -> GateAnswer:
        """Whether the cosine of each sample's states before and after the layer is above, [R]."""
        limit = at_layer(thresholds, seen.layer)
        if limit >= 1:
            return False
        similarity = ENCODER_SIMILARITIES[self.encoder_similarity]
        return similarity(seen.previous, seen.current, seen.padding_mask) > limit


@dataclass
class SimilarityExit(EncoderSimilarity):
    """Exit after a layer if the cosine of its input and output exceeds a threshold.

    MuE Eqs. 7-11 and Algorithm 1. A threshold of 1 or more means never, since the cosine of equal
    vectors may round to a little over 1.
    """

    decoder_field: ClassVar[str] = "decoder_threshold"
    image_threshold: PerLayer = image_threshold_option(0.9)
    text_threshold: PerLayer = text_threshold_option(0.95)
    encoder_threshold: PerLayer = encoder_threshold_option()
    decoder_threshold: PerLayer = threshold_option(
        0.99,
        "the same for each word in the decoder",
        "captioning 0.99, answers 0.95",
        tries=DECODER_TRIES,
    )
    schedule: str = schedule_option("decay")
    beta: float = beta_option(0.95)
    tau: float = tau_option(1.0)
    encoder_similarity: str = encoder_similarity_option()

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
        super().check(model)
        reject_unused_parameters(self.schedule, self.given)

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        limit = at_layer(self.decoder_threshold, seen.layer)
        if limit >= 1:
            return False
        similarity = hidden_saturation(seen.previous, seen.current)
        return similarity > threshold_of_step(seen, limit, self.schedule, self.beta, self.tau)

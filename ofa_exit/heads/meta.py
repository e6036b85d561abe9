"""The meta classifier: learned confidence beside the shared head (CALM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ofa_exit.heads.base import ExitHeads


class MetaHeads(ExitHeads):
    """Shared heads, and one linear classifier of all layers: is this layer's word the last one's?

    CALM (Schuster et al. 2022) Section 3.4. Words are scored by the decoder's own norm and
    projection.
    """

    summary = "the shared head and a classifier that says whether to exit (CALM)"
    learns_from_words = False  # words are scored without the classifier
    has_confidence = True

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> MetaHeads:
        channels = backbone.output_projection.weight.size(1)
        return cls(layers, {"classifier": nn.Linear(channels, 2)})

    def meta_logits(self, hidden: Tensor) -> Tensor:
        """Return the classifier's logits [..., 2] (go on, exit) of hidden states [..., C]."""
        classifier: Any = self["classifier"]
        return classifier(hidden).float()

    def confidence(self, layer: int, hidden: Tensor) -> Tensor:
        return self.meta_logits(hidden).softmax(-1)[..., 1]

    def flops(self, layer: int, keys: int, source: int) -> int:
        """Return the FLOPs of the classifier for one token: 4·C."""
        classifier: Any = self["classifier"]
        return 4 * classifier.weight.size(1)

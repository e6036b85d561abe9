"""The meta classifier: the shared head with a learned confidence (CALM)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.heads.base import ExitHeads


class MetaHeads(ExitHeads):
    """Shared heads, and one linear classifier of all layers: is this layer's word the last one's?

    CALM (Schuster et al. 2022), after the authors' code. Words are scored by the decoder's own norm
    and projection.
    """

    summary = "the shared head and a classifier that says whether to exit (CALM)"
    learns_from_words = False  # words are scored without the classifier
    has_confidence = True

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> MetaHeads:
        channels = backbone.output_projection.weight.size(1)
        return cls(layers, {"classifier": nn.Linear(channels, 2)})

    def meta_logits(self, hidden: Tensor) -> Tensor:
        """Return the classifier's logits [..., 2] (go on, exit) of hidden states [..., C].

        They are computed in float32: rounding must not decide whether a row exits.
        """
        classifier: Any = self["classifier"]
        device = hidden.device.type
        has_autocast = torch.amp.is_autocast_available(device)  # not tensors without values
        with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
            return F.linear(hidden.float(), classifier.weight.float(), classifier.bias.float())

    def confidence(self, layer: int, hidden: Tensor) -> Tensor:
        return self.meta_logits(hidden).softmax(-1)[..., 1]

    def flops(self, layer: int, keys: int, source: int) -> int:
        """Return the FLOPs of the classifier for one token: 4·C."""
        classifier: Any = self["classifier"]
        return 4 * classifier.weight.size(1)

"""Adapter heads: a small residual module before the shared classifier (DEED)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.heads.base import ExitHeads, HeadContext

REDUCTION = 4
"""How many times narrower than the model an adapter is."""


class AdapterHeads(ExitHeads):
    """z_i = U · LN(h_i + B_i · gelu(A_i · h_i)) after layer i.

    U and LN are the decoder's own. A_i goes from C channels to C / 4. B_i is zero at first, so an
    untrained head is the shared one.

    Reconstruction: the abstract of DEED (Tang et al. 2023) names an adaptation module before one
    generation head of all layers. Its form is that of usual adapters.
    """

    summary = "a small residual module before the shared classifier (DEED)"

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> AdapterHeads:
        channels = backbone.output_projection.weight.size(1)
        modules: dict[str, nn.Module] = {}
        for layer in layers:
            down = nn.Linear(channels, channels // REDUCTION)
            up = nn.Linear(channels // REDUCTION, channels)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
            modules[str(layer)] = nn.ModuleDict({"down": down, "up": up})
        return cls(layers, modules)

    def features(self, layer: int, hidden: Tensor, context: HeadContext) -> Tensor:
        head: Any = self[str(layer)]
        return hidden + head["up"](F.gelu(head["down"](hidden)))  # [N, P, C]

    def flops(self, layer: int, keys: int, source: int) -> int:
        """Return the FLOPs of one token's features: 4·C·(C / 4)."""
        first: Any = next(iter(self.values()))
        narrow, channels = first["down"].weight.shape
        return 4 * channels * narrow

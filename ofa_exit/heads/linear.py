"""Linear heads: a norm and a vocabulary matrix of their own (DeeBERT, PABEE, LeeBERT)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.heads.base import ExitHeads


class LinearHeads(ExitHeads):
    """z_i = W_i · dropout(LN_i(h_i)) after layer i. Norm and matrix start as the decoder's own.

    A classifier of BERT has a few labels, one of a decoder has the vocabulary: at OFA base's
    59,457 words and 768 channels a head has 45.7 million weights, as many as five decoder layers.
    """

    summary = "a norm and a vocabulary matrix of their own (DeeBERT, PABEE, LeeBERT)"
    scores_words = True
    pooled = False

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> LinearHeads:
        words, channels = backbone.output_projection.weight.shape
        modules: dict[str, nn.Module] = {}
        for layer in layers:
            projection = nn.Linear(channels, words, bias=False)
            projection.load_state_dict({"weight": backbone.output_projection.weight.detach()})
            head = nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(channels),
                    "dropout": nn.Dropout(cfg.dropout),
                    "output_projection": projection,
                }
            )
            if cls.pooled:
                pooler = head["pooler"] = nn.Linear(channels, channels)
                nn.init.xavier_uniform_(pooler.weight)
                nn.init.zeros_(pooler.bias)
            modules[str(layer)] = head
        return cls(layers, modules)

    def scores(
        self,
        layer: int,
        features: Tensor,
        words: Optional[Tensor],
        shared: Callable[[Tensor, Optional[Tensor]], Tensor],
    ) -> Tensor:
        head: Any = self[str(layer)]
        features = head["norm"](features)  # [..., C]
        if self.pooled:
            features = torch.tanh(head["pooler"](features))
        features = head["dropout"](features)
        weight = head["output_projection"].weight  # [V, C]
        return F.linear(features, weight if words is None else weight[words])

    def score_flops(self, shared: int) -> int:
        """Return the FLOPs of scoring one token: 2·C·V, and 2·C² of the pooler."""
        first: Any = next(iter(self.values()))
        channels = first["output_projection"].weight.size(1)
        return shared + (2 * channels**2 if self.pooled else 0)

    def starts_from(self, layer: int, entry: str) -> Optional[str]:
        module, _, name = entry.partition(".")
        sources = {"norm": "layer_norm", "output_projection": "output_projection"}
        return f"decoder.{sources[module]}.{name}" if module in sources else None


class PooledLinearHeads(LinearHeads):
    """z_i = W_i · dropout(tanh(P_i · LN_i(h_i) + b_i)): BERT's pooler before the linear head.

    Differs from DeeBERT: OFA has no pooler to copy, so P_i starts from Xavier's initialisation.
    Such a head is far from the backbone's words until it is trained.
    """

    summary = "a pooler with tanh, as in BERT, before the linear head"
    pooled = True

"""A user-dir that adds PABEE to ofa-exit: a patience rule over linear heads of their own.

PABEE is built in (`--exit-policy patience`). This folder shows how it would be added from outside.

    fairseq-train … --user-dir examples/extend --criterion pabee_loss \\
        --exit-layers 1,2,3,4,5 --exit-head pabee_linear
    fairseq-generate … --user-dir examples/extend --exit-policy pabee --exit-patience 2

PABEE is "BERT Loses Patience" (Zhou et al., NeurIPS 2020). Its classifiers sit after the layers of
an encoder; here they follow the decoder's layers and predict the next word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ofa_exit.plugin  # noqa: F401  (registers models, tasks and scorers)
from ofa_exit.heads.base import ExitHeads
from ofa_exit.heads.registry import register_head
from ofa_exit.policies.base import ExitPolicy, GateInput, option
from ofa_exit.policies.registry import register_policy


@register_policy("pabee")
@dataclass
class PatienceExit(ExitPolicy):
    """Exit once the predicted word has not changed for ``patience`` heads in a row."""

    patience: int = option(2, "heads in a row that must agree with the one before", at_least=1)

    def decoder_gate(self, seen: GateInput) -> Tensor | bool:
        if not seen.has_head:
            return False
        word = seen.scores(lambda logits: logits.argmax(-1))  # Long [N, P]
        same = word == seen.memory.get("word", torch.full_like(word, -1))
        agreed = torch.where(same, seen.memory.get("agreed", torch.zeros_like(word)) + 1, 0)
        seen.memory.update(word=word, agreed=agreed)
        return agreed >= self.patience


@register_head("pabee_linear")
class LinearHeads(ExitHeads):
    """A norm and a vocabulary matrix per head. Each starts as the decoder's own."""

    scores_words = True

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> "LinearHeads":
        vocabulary, channels = backbone.output_projection.weight.shape
        modules = {}
        for layer in layers:
            norm, projection = nn.LayerNorm(channels), nn.Linear(channels, vocabulary, bias=False)
            norm.load_state_dict(backbone.layer_norm.state_dict())
            projection.load_state_dict({"weight": backbone.output_projection.weight.detach()})
            modules[str(layer)] = nn.Sequential(norm, projection)
        return cls(layers, modules)

    def scores(
        self,
        layer: int,
        features: Tensor,
        words: Optional[Tensor],
        shared: Callable[[Tensor, Optional[Tensor]], Tensor],
    ) -> Tensor:
        norm, projection = self[str(layer)]
        weight = projection.weight if words is None else projection.weight[words]
        return F.linear(norm(features), weight)

    def starts_from(self, layer: int, entry: str) -> str:
        """Entries 0.… are the norm's, 1.… the projection's."""
        name = entry.partition(".")[2]
        return f"decoder.{'layer_norm' if entry.startswith('0') else 'output_projection'}.{name}"


from . import criterion  # noqa: E402, F401

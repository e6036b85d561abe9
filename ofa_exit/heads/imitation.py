"""Imitation heads: fuse the layers that ran with an imitation of those that did not (DeeCap)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ofa_exit.heads.base import ExitHeads, HeadContext

# Name in the heads' memory: the sum of the pooled states of layers 1 to {}, [N, P, C].
POOLED_SUM = "imitation: sum of pooled states to layer {}"


class ImitationHeads(ExitHeads):
    """z_i = U · LN(f_i) after layer i, from the states of layers 1 … i and imitated later ones.

        u_i = tanh(A_i · LN_i(h_i) + a_i)                pooled state
        û_j|i = tanh(W_j · u_i + c_j), j > i             imitation of a later layer's
        λ = σ(G · tanh(mean of u_1 … u_i) + g)           gate, per channel
        f_i = 2λ ⊙ Σ_j≤i u_j + (2 - 2λ) ⊙ Σ_j>i û_j|i    fusion

    DeeCap (Fei et al. 2022), after the authors' code. W_j belongs to the imitated layer, and G to
    all heads. As released, the fusion takes the next layer's imitation alone. ``ImitateAllHeads``
    takes those of all later layers.

    The word loss of layer i reaches u_i alone: earlier pooled states are constants in f_i. The
    heads after the lower half of the layers do not train the backbone.

    Differs from the authors' code:

    * The last layer answers as the plain model does, so that full depth is the model without
      exits. Its pooled state, which only the imitations learn from, is u_N = tanh(LN(h_N)), without
      weights: the last layer's words are made of LN(h_N).
    * OFA does not norm its states after a layer, so a norm LN_i comes before A_i, and the decoder's
      final norm before U. LN_i starts as that final norm, A_i and W_j as the identity, λ as 0.5.
    * There the lower layers get no gradient at all. Here they learn from the deeper layers' words.
    """

    summary = "fusion of the layers that ran and the imitated next one (DeeCap)"
    imitates_all = False

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> ImitationHeads:
        depth = len(backbone.layers)
        if list(layers) != list(range(1, depth)):
            raise ValueError(
                f"--exit-layers {','.join(map(str, layers))}: imitation heads look at every layer, "
                "so give --exit-layers all"
            )
        channels = backbone.output_projection.weight.size(1)
        modules: dict[str, nn.Module] = {}
        for layer in layers:
            modules[str(layer)] = nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(channels),
                    "pool": _identity(channels),
                    "imitator": _identity(channels),  # W of the layer after this one
                }
            )
        gate = modules["gate"] = nn.Linear(channels, channels)
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
        return cls(layers, modules)

    def pool(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the pooled states u_i of hidden states [..., C] after ``layer``."""
        head: Any = self[str(layer)]
        if layer <= (len(self.layers) + 1) // 2:
            hidden = hidden.detach()
        return torch.tanh(head["pool"](head["norm"](hidden)))

    def imitate(self, layer: int, pooled: Tensor) -> Tensor:
        """Return û_j|i, the imitation of ``layer`` j, of an earlier layer's u_i [..., C]."""
        head: Any = self[str(layer - 1)]
        return torch.tanh(head["imitator"](pooled))

    def fused_layers(self, layer: int) -> range:
        """Return the later layers whose imitations f_i takes."""
        last = len(self.layers) + 1 if self.imitates_all else layer + 1
        return range(layer + 1, last + 1)

    def features(self, layer: int, hidden: Tensor, context: HeadContext) -> Tensor:
        pooled = self.pool(layer, hidden)  # u_i, [N, P, C]
        past = pooled
        if layer > 1:
            past = context.memory[POOLED_SUM.format(layer - 1)].detach() + pooled
        # One name a layer: a checkpointed head, which runs again, finds what it found before.
        context.memory[POOLED_SUM.format(layer)] = past
        future = torch.stack([self.imitate(j, pooled) for j in self.fused_layers(layer)]).sum(0)
        linear: Any = self["gate"]
        gate = torch.sigmoid(linear(torch.tanh(past / layer)))  # λ, [N, P, C]
        return 2 * gate * past + (2 - 2 * gate) * future

    def select(self, layers: Sequence[int]) -> list[int]:
        """A head needs the pooled states of every layer before it."""
        return list(range(1, max(layers, default=0) + 1))

    def flops(self, layer: int, keys: int, source: int) -> int:
        """Return the FLOPs of one token's features: 2·C² for pool, gate and each imitation."""
        gate: Any = self["gate"]
        channels = gate.weight.size(1)
        return (2 + len(self.fused_layers(layer))) * 2 * channels**2

    def starts_from(self, layer: int, entry: str) -> Optional[str]:
        module, _, name = entry.partition(".")
        return f"decoder.layer_norm.{name}" if module == "norm" else None


class ImitateAllHeads(ImitationHeads):
    """The same with the imitations of every later layer in f_i.

    The abstract of DeeCap speaks of deep layers' states in general, not of the next one's.
    """

    summary = "fusion of the layers that ran and all imitated later ones (DeeCap's abstract)"
    imitates_all = True


def _identity(channels: int) -> nn.Linear:
    """Return a linear layer that starts as the identity."""
    linear = nn.Linear(channels, channels)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear

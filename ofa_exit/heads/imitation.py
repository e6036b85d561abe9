"""Imitation heads: fuse the layers that ran with an imitation of those that did not (DeeCap)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ofa_exit.heads.base import ExitHeads, HeadContext

MEMORY = "imitation: pooled states"


class ImitationHeads(ExitHeads):
    """z_i = U · LN(f_i) after layer i, from the states of layers 1 … i and imitated later ones.

        u_i = tanh(A_i · LN(h_i) + a_i)                  pooled state
        û_j|i = tanh(W_j · u_i + c_j), j > i             imitation of a later layer's
        λ = σ(G · tanh(mean of u_1 … u_i) + g)           gate, per channel
        f_i = 2λ ⊙ Σ_j≤i u_j + (2 - 2λ) ⊙ Σ_j>i û_j|i    fusion

    DeeCap (Fei et al. 2022), after the authors' code. W_j belongs to the imitated layer, and G to
    all heads. As released, only the next layer is imitated; ``ImitateAllHeads`` imitates all.

    Differs from the paper: OFA's states are not normed after a layer, so LN, a norm of each layer
    that starts as the decoder's final norm, comes before A_i. The last layer answers as the plain
    model does, not through f_N, so that full depth is the model without exits. A_i and W_j start as
    the identity, and λ as 0.5.
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
        heads = cls(layers)
        # Entry k of the lists is of layer k + 1 (pools), or imitates layer k + 2 (imitators).
        heads["norms"] = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        heads["pools"] = nn.ModuleList(_identity(channels) for _ in range(depth))
        heads["imitators"] = nn.ModuleList(_identity(channels) for _ in range(depth - 1))
        gate = heads["gate"] = nn.Linear(channels, channels)
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
        return heads

    @property
    def depth_of_backbone(self) -> int:
        return len(self.layers) + 1

    def pool(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the pooled states u_i of hidden states [..., C] after ``layer``."""
        norms: Any = self["norms"]
        pools: Any = self["pools"]
        return torch.tanh(pools[layer - 1](norms[layer - 1](hidden)))

    def imitate(self, layer: int, pooled: Tensor) -> dict[int, Tensor]:
        """Return û_j|i of pooled states [..., C] after ``layer``, by imitated layer j."""
        imitators: Any = self["imitators"]
        last = self.depth_of_backbone if self.imitates_all else layer + 1
        return {j: torch.tanh(imitators[j - 2](pooled)) for j in range(layer + 1, last + 1)}

    def fuse(self, past: Tensor, future: Sequence[Tensor]) -> Tensor:
        """Return f_i [N, P, C] of pooled states [N, P, i, C] and the imitated ones [N, P, C]."""
        linear: Any = self["gate"]
        gate = torch.sigmoid(linear(torch.tanh(past.mean(2))))  # λ, [N, P, C]
        return 2 * gate * past.sum(2) + (2 - 2 * gate) * torch.stack(list(future)).sum(0)

    def features(self, layer: int, hidden: Tensor, context: HeadContext) -> Tensor:
        if layer <= self.depth_of_backbone // 2:  # the lower half learns from later layers
            hidden = hidden.detach()
        pooled = self.pool(layer, hidden)  # [N, P, C]
        states = pooled.unsqueeze(2)  # [N, P, 1, C]
        if layer > 1:  # earlier pooled states do not learn from this layer's words
            states = torch.cat([context.memory[MEMORY].detach(), states], dim=2)  # [N, P, i, C]
        context.memory[MEMORY] = states
        return self.fuse(states, list(self.imitate(layer, pooled).values()))

    def select(self, layers: Sequence[int]) -> list[int]:
        """A head needs the pooled states of every layer before it."""
        return list(range(1, max(layers, default=0) + 1))

    def flops(self, keys: int, source: int) -> int:
        """Return the FLOPs of one token's features: 2·C² of pool, gate and each imitator.

        Where all later layers are imitated, their number is the mean over the heads'.
        """
        gate: Any = self["gate"]
        channels = gate.weight.size(1)
        imitated = (self.depth_of_backbone // 2) if self.imitates_all else 1
        return (2 + imitated) * 2 * channels**2


class ImitateAllHeads(ImitationHeads):
    """The same with every later layer imitated, as the paper's abstract speaks of."""

    summary = "the same with every later layer imitated"
    imitates_all = True


def _identity(channels: int) -> nn.Linear:
    """Return a linear layer that starts as the identity."""
    linear = nn.Linear(channels, channels)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear

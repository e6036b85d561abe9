"""BLIPEE's heads: one more transformer layer before the shared classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ofa_exit.heads.base import ExitHeads, HeadContext


class TransformerHeads(ExitHeads):
    """E_i of BLIPEE Section 3.2: a decoder layer with K/V of its own, biased as the next layer.

    "A replica of the layers in the LM" (BLIPEE Section 1); the paper does not say of which. A copy
    of the next layer, under that layer's position biases, makes an untrained head after layer i the
    backbone after i + 1 layers. Copies of the last layer or of layer i start worse and stay worse
    on the shipped checkpoint.
    """

    summary = "a decoder layer before the shared classifier (BLIPEE)"
    caches_kv = True
    depth = 1

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> TransformerHeads:
        modules = {str(layer): backbone.new_layer() for layer in layers}
        for layer, module in modules.items():
            module.load_state_dict(backbone.layers[int(layer)].state_dict())
        return cls(layers, modules)

    def features(self, layer: int, hidden: Tensor, context: HeadContext) -> Tensor:
        module = self[str(layer)]
        return module(hidden, *context.attention_inputs(layer, module))

    def flops(self, layer: int, keys: int, source: int) -> int:
        return self._any.flops(keys, source)

    def cache_flops(self) -> int:
        return self._any.self_kv_flops()

    def source_flops(self, source: int) -> int:
        return self._any.cross_kv_flops(source)

    @property
    def _any(self) -> Any:
        return next(iter(self.values()))

    def starts_from(self, layer: int, entry: str) -> str:
        """Start as a copy of the layer after the head's, which is ``layer`` counted from 0."""
        return f"decoder.layers.{layer}.{entry}"

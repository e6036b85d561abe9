"""What an exit head is: the part that answers after a layer before the last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Optional, Protocol

from torch import Tensor, nn

logger = logging.getLogger(__name__)


class HeadContext(Protocol):
    """What a head is given beside the hidden states, by the decoder's pass."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """Tensors that heads keep from layer to layer, by name.

        Their first dimension is the active rows. The runtime compacts them with the rows and clears
        them at each step. The policy has the same memory, so a head's names begin with its kind.
        """

    def attention_inputs(self, layer: int, module: Any) -> tuple[Any, ...]:
        """Return what a decoder layer takes after its hidden states: self-attention bias,
        cross-attention K/V and bias, and where earlier positions' K/V are.

        Args:
            layer: decoder layer, from 1, that the head follows.
            module: the decoder layer inside the head; its projections make the K/V.
        """


class ExitHeads(nn.ModuleDict):
    """The exit heads of a decoder, all of one kind. Keys: decoder layers, from 1, they follow.

    A head turns the hidden states after its layer into features, and features into word scores.
    Subclass it, build its modules in ``build`` and register it with ``register_head``. Modules that
    all heads share have other keys, which are no numbers.
    """

    summary = ""
    """What the heads are, for the help text of ``--exit-head``."""
    caches_kv = False
    """Whether a head keeps keys and values of earlier positions."""
    depth = 0
    """Decoder layers that a head has of its own, for MuE's Eq. 14 and BLIPEE's i + k."""
    scores_words = False
    """Whether word scores are the head's own instead of the shared final norm and projection's."""

    learns_from_words = True
    """Whether a loss on their words reaches all weights of the heads."""
    has_confidence = False
    """Whether the heads have a learned confidence, see ``confidence``."""

    def __init__(self, layers: Sequence[int], modules: Optional[dict[str, nn.Module]] = None):
        super().__init__(modules or {})
        self.layers = list(layers)
        self.missing: list[int] = []
        """Layers whose heads the checkpoint lacked, wholly or in part."""

    @property
    def trained(self) -> bool:
        """Whether the heads have modules. Without any they cost nothing and are always there."""
        return len(self) > 0

    def parameters_per_head(self) -> int:
        """Return the mean number of weights of a head; 0 for heads without weights of their own."""
        own = sum(parameter.numel() for parameter in self.parameters())
        return own // max(len(self.layers), 1)

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> ExitHeads:
        """Return the heads of a new model.

        Args:
            layers: decoder layers, from 1, in increasing order.
            cfg: the model's arguments.
            backbone: the decoder stack: ``layers``, ``layer_norm``, ``output_projection`` and
                ``new_layer()``.
        """
        raise NotImplementedError

    def features(self, layer: int, hidden: Tensor, context: HeadContext) -> Tensor:
        """Turn hidden states [N, P, C] after ``layer`` into features [N, P, C]."""
        return hidden

    def scores(
        self,
        layer: int,
        features: Tensor,
        words: Optional[Tensor],
        shared: Callable[[Tensor, Optional[Tensor]], Tensor],
    ) -> Tensor:
        """Turn features [..., C] after ``layer`` into word scores [..., V].

        Args:
            words: Long [W], the words to score; None for the whole vocabulary.
            shared: the final norm and tied projection of the decoder, of features and words.
        """
        return shared(features, words)

    def select(self, layers: Sequence[int]) -> list[int]:
        """Return the layers whose heads have to run for those after ``layers`` to answer."""
        return list(layers)

    def confidence(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the learned confidence [R, P], in [0, 1], of hidden states [R, P, C]."""
        raise NotImplementedError

    def flops(self, layer: int, keys: int, source: int) -> int:
        """Return the FLOPs of one token's features.

        Args:
            layer: decoder layer, from 1, that the head follows.
            keys: positions that self-attention covers.
            source: source tokens that cross-attention covers.
        """
        return 0

    def score_flops(self, shared: int) -> int:
        """Return the FLOPs of scoring one token; ``shared``: those of the shared projection."""
        return shared

    def cache_flops(self) -> int:
        """Return the FLOPs of one token's self-attention K/V in a head that was not reached."""
        return 0

    def source_flops(self, source: int) -> int:
        """Return the FLOPs of a sentence's cross-attention K/V, made once per head."""
        return 0

    def starts_from(self, layer: int, entry: str) -> Optional[str]:
        """Return the entry of a checkpoint without heads that an entry of a head starts as.

        Args:
            layer: decoder layer, from 1, that the head follows.
            entry: name in the head's own state dict.

        Returns:
            The name in the checkpoint; None for an entry that starts as when built.
        """
        return None

    def init_from(self, own: dict[str, Tensor], state: dict[str, Tensor], prefix: str) -> None:
        """Add to a checkpoint, in place, the heads that it lacks (see ``starts_from``).

        Their layers are in ``missing`` afterwards. Only training accepts such a checkpoint.

        Args:
            own, state: state dicts of the model and of the checkpoint.
            prefix: of the heads' names in both.

        Raises:
            ValueError: the checkpoint has heads that the model lacks, or heads of another kind.
        """
        mine = set(self.layers) if self.trained else set()
        saved = layers_in(state, prefix)
        if saved - mine:
            names = ",".join(map(str, sorted(saved)))
            built = "heads after " + ",".join(map(str, sorted(mine))) if mine else "none"
            raise ValueError(
                f"the checkpoint has exit heads after decoder layers {names}, the model has "
                f"{built}: add --exit-layers {names} with their --exit-head"
            )
        wanted = {name for name in own if name.startswith(prefix)}
        found = {name for name in state if name.startswith(prefix)}
        missing = wanted - found
        # A head that is in the checkpoint is there as a whole.
        partial = [name for name in missing if layer_of(name, prefix) in saved]
        wrong = sorted([*(found - wanted), *partial])
        if wrong:
            raise ValueError(
                f"the checkpoint's exit heads are of another kind than the model's ({wrong[0]}): "
                "give the --exit-head and --exit-layers that it was trained with"
            )
        for name in missing:
            layer, source = layer_of(name, prefix), None
            if layer is not None:
                source = self.starts_from(layer, name.removeprefix(f"{prefix}{layer}."))
            state[name] = state[source].clone() if source in state else own[name]
        # What all heads share has no layer: without it all are incomplete.
        self.missing = (sorted(mine - saved) or self.layers) if missing else []
        if missing:
            logger.info(
                "missing exit heads initialised: those after decoder layers %s",
                ",".join(map(str, self.missing)),
            )


def layer_of(name: str, prefix: str) -> Optional[int]:
    """Return the layer that the head of an entry follows; None if all heads share it."""
    key = name.removeprefix(prefix).split(".")[0]
    return int(key) if key.isdigit() else None


def layers_in(state: dict[str, Any], prefix: str) -> set[int]:
    """Return the layers that the heads in a state dict follow."""
    layers = {layer_of(name, prefix) for name in state if name.startswith(prefix)}
    return {layer for layer in layers if layer is not None}


def parse_exit_layers(spec: Optional[str], layers: int) -> list[int]:
    """Return the decoder layers, from 1, that heads follow, in order; [] for None.

    Args:
        spec: numbers separated by commas, or ``all``: every layer before the last.
        layers: of the decoder.

    Raises:
        ValueError: ``spec`` is no list of different layers before the last.
    """
    if spec is None or not str(spec).strip():
        return []
    if spec == "all":
        return list(range(1, layers))
    try:
        if not str(spec).isascii():  # int reads the digits of any script
            raise ValueError(spec)
        heads = [int(part) for part in str(spec).strip("()[]").split(",")]
    except ValueError:
        raise ValueError(
            f"--exit-layers {spec!r}: give numbers of decoder layers separated by commas, as in "
            "2,4, or all"
        ) from None
    if not all(1 <= layer < layers for layer in heads) or len(set(heads)) != len(heads):
        raise ValueError(
            f"--exit-layers {spec!r}: give different numbers from 1 to {layers - 1} (the last of "
            f"{layers} decoder layers needs no head)"
        )
    return sorted(heads)

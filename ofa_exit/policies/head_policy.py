"""Bases of policies that exit through heads: which heads they try, and thresholds per layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Optional

from ofa_exit.policies.base import ExitPolicy, Gate, option
from ofa_exit.policies.thresholds import PerLayer, at_layer, numbers_of, reject_wrong_count


def parse_layers(value: Any) -> list[int]:
    """Return decoder layers of a list, or of a text such as ``2,4``. Raises ValueError."""
    layers: Any = value
    if isinstance(value, str):
        parts = [part.strip() for part in value.strip("[]()").split(",")]
        are_numbers = all(part.isascii() and part.isdecimal() for part in parts)
        layers = [int(part) for part in parts] if are_numbers else None
    if (
        not isinstance(layers, (list, tuple))
        or not layers
        or not all(type(layer) is int and layer >= 1 for layer in layers)
    ):
        raise ValueError(f"must be a list of decoder layers, got {value!r}")
    return list(layers)


def layers_option() -> Any:
    """Declare the field ``layers`` of a ``HeadPolicy``, the flag ``--exit-active-layers``."""
    return option(
        None,
        "decoder layers whose heads are tried, as 2,4 (default: all that the model has)",
        parse=parse_layers,
        flag="active-layers",
    )


class HeadPolicy(ExitPolicy):
    """Exits in the decoder alone, after layers that a head follows, whatever its kind.

    The heads are those of ``--exit-layers``, or else the shared one after every layer before the
    last. A head that is not tried costs nothing.
    """

    layers: Optional[Sequence[int]] = None
    """Layers whose heads are tried; None for all. A field: see ``layers_option``."""

    def check(self, model: Any) -> None:
        available = heads_of(model)
        missing = sorted(set(self.layers or ()) - set(available))
        if missing:
            raise ValueError(
                f"--exit-active-layers {','.join(map(str, missing))}: the model has heads after "
                f"layers {','.join(map(str, available))}"
            )

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        return layers if self.layers is None else [one for one in layers if one in self.layers]


def heads_of(model: Any) -> list[int]:
    """Return the decoder layers that a head follows in a model of these arguments."""
    layers = getattr(model, "exit_layers", None)
    if not layers or layers == "all":
        return list(range(1, model.decoder_layers))
    return sorted(parse_layers(layers))


class HeadThresholdPolicy(HeadPolicy):
    """Compares a measure of each head with a threshold, one for all layers or one per layer."""

    threshold_field: ClassVar[str]
    """Name of the field that holds the threshold."""

    @property
    def thresholds(self) -> PerLayer:
        return getattr(self, self.threshold_field)

    def is_never(self, threshold: float) -> bool:
        """Return whether nothing can exit at this threshold."""
        return threshold >= 1

    def check(self, model: Any) -> None:
        super().check(model)
        flag = f"--exit-{self.threshold_field.replace('_', '-')}"
        reject_wrong_count(flag, self.thresholds, model.decoder_layers, "decoder")

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        tried = super().select_heads(layers)
        return [one for one in tried if not self.is_never(at_layer(self.thresholds, one))]

    def gate(self, part: str) -> Optional[Gate]:
        never = all(map(self.is_never, numbers_of(self.thresholds)))
        return None if never else super().gate(part)

"""Thresholds of policies: one number for every layer, or one per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional, Union

from ofa_exit.policies.base import option

PerLayer = Union[float, tuple[float, ...]]
"""A threshold of all layers, or one after each layer but the last, from layer 1."""
NEVER = 2.0
"""A threshold no cosine or probability reaches."""


def threshold_option(
    default: float,
    help: str,
    shown: Optional[str] = None,
    is_share: bool = True,
    tries: Sequence[float] = (),
) -> Any:
    """Declare a field of type ``PerLayer``, whose numbers are 0 or more.

    Args:
        default, help, tries: see ``option``.
        shown: the default in the help text, if not the number.
        is_share: 1 or more means never, so that a number above ``NEVER`` is likely percent.
    """
    help += "; one number, or one after each layer but the last, as 0.9,0.8 "
    return option(
        default,
        f"{help}(default: {shown or default})",
        at_least=0,
        parse=parse_thresholds,
        doubts=doubt_percent if is_share else None,
        tries=tries,
    )


def doubt_percent(thresholds: PerLayer) -> Optional[str]:
    """Return why thresholds look like percent; None if they do not."""
    large = [one for one in numbers_of(thresholds) if one > NEVER]
    if not large:
        return None
    example = f"such as {large[0] / 100:g}" if large[0] <= 100 else "such as 0.9"
    return f"nothing exits at a threshold of 1 or more. Give a fraction, not percent, {example}"


def parse_thresholds(value: Any) -> PerLayer:
    """Return a threshold given as a number, a list of numbers, or a text such as ``0.9,0.8``.

    Raises:
        ValueError: a number is missing, negative or not finite.
    """
    given = value
    if isinstance(value, str):
        try:
            if not value.isascii():  # float reads the digits of any script
                raise ValueError(value)
            numbers = [float(part) for part in value.strip("[]() ").split(",")]
        except ValueError:
            raise ValueError(f"must be a number, or numbers as 0.9,0.8, got {value!r}") from None
        value = numbers if len(numbers) > 1 else numbers[0]
    several = isinstance(value, (list, tuple)) and len(value) > 0
    for one in value if several else [value]:
        if isinstance(one, bool) or not isinstance(one, (int, float)):
            raise ValueError(f"must be a number, or a list of numbers, got {given!r}")
        if not math.isfinite(one) or one < 0:
            raise ValueError(f"must be a finite number of at least 0, got {one}")
    return tuple(map(float, value)) if several else float(value)


def numbers_of(thresholds: PerLayer) -> tuple[float, ...]:
    """Return the numbers of a threshold: one, or one per layer."""
    return (thresholds,) if isinstance(thresholds, float) else thresholds


def at_layer(thresholds: PerLayer, layer: int) -> float:
    """Return the threshold after a layer, from 1."""
    if isinstance(thresholds, float):
        return thresholds
    if layer > len(thresholds):
        raise ValueError(f"{len(thresholds)} thresholds are given, none of them for layer {layer}")
    return thresholds[layer - 1]


def reject_wrong_count(flag: str, thresholds: PerLayer, layers: int, part: str) -> None:
    """Raise ValueError if a list has not one number after each layer but the last.

    Args:
        flag: of the thresholds.
        layers: of the stack; part: "encoder" or "decoder".
    """
    if not isinstance(thresholds, float) and len(thresholds) != layers - 1:
        raise ValueError(
            f"{flag} gives {len(thresholds)} numbers, and the model has {layers} {part} layers: "
            f"give one number, or {layers - 1}, one after each layer but the last"
        )

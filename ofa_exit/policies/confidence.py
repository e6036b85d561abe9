"""BLIPEE's policy: exit at the first head that is confident of its word."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ofa_exit.policies.base import ExitPolicy, Gate, GateAnswer, GateInput, option
from ofa_exit.policies.measures import softmax_confidence


def parse_layers(value: Any) -> list[int]:
    """Return decoder layers of a list, or of a text such as ``2,4``. Raises ValueError."""
    layers: Any = value
    if isinstance(value, str):
        parts = [part.strip() for part in value.strip("[]()").split(",")]
        layers = [int(part) for part in parts] if all(map(str.isdigit, parts)) else None
    if (
        not isinstance(layers, (list, tuple))
        or not layers
        or not all(type(layer) is int and layer >= 1 for layer in layers)
    ):
        raise ValueError(f"must be a list of decoder layers, got {value!r}")
    return list(layers)


@dataclass
class ConfidenceExit(ExitPolicy):
    """Exit at the first head whose largest softmax probability exceeds α (BLIPEE Section 3.5).

    S_i = max over words of C_N(E_i(h^i)), over the allowed words where a task has a closed set.
    The encoder runs in full. A head that is not tried costs nothing.
    """

    alpha: float = option(
        0.8,
        "exit if a head's top-1 probability exceeds alpha (the model needs --exit-layers); "
        "1 or more: never",
        at_least=0,
    )
    layers: Optional[Sequence[int]] = option(
        None,
        "decoder layers whose heads are tried, as 2,4 (default: all that the model has)",
        parse=parse_layers,
        flag="active-layers",
    )

    def check(self, model: Any) -> None:
        heads = getattr(model, "exit_layers", None)
        if not heads:
            raise ValueError(
                "--exit-policy confidence needs a model with exit heads: train them with "
                "--exit-layers and --criterion blipee_adversarial, or use --exit-policy similarity"
            )
        available = parse_layers(heads)
        missing = sorted(set(self.layers or ()) - set(available))
        if missing:
            raise ValueError(
                f"--exit-active-layers {','.join(map(str, missing))}: the model has heads after "
                f"layers {','.join(map(str, available))}"
            )

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        if self.alpha >= 1:
            return ()
        return layers if self.layers is None else [one for one in layers if one in self.layers]

    def gate(self, part: str) -> Optional[Gate]:
        return None if self.alpha >= 1 else super().gate(part)

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        return seen.has_head and seen.scores(softmax_confidence) > self.alpha

"""The shared head: the decoder's own final norm and tied projection, after any layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ofa_exit.heads.base import ExitHeads


class SharedHeads(ExitHeads):
    """Heads without parameters: a layer answers as the last one would (MuE, CALM)."""

    summary = "the final norm and projection alone (MuE, CALM)"

    @classmethod
    def build(cls, layers: Sequence[int], cfg: Any, backbone: Any) -> SharedHeads:
        return cls(layers)

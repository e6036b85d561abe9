"""Kinds of exit heads by name: the choices of ``--exit-head``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ofa_exit.heads.adapter import AdapterHeads
from ofa_exit.heads.base import ExitHeads, parse_exit_layers
from ofa_exit.heads.imitation import ImitateAllHeads, ImitationHeads
from ofa_exit.heads.linear import LinearHeads, PooledLinearHeads
from ofa_exit.heads.meta import MetaHeads
from ofa_exit.heads.shared import SharedHeads
from ofa_exit.heads.transformer import TransformerHeads

HEADS: dict[str, type[ExitHeads]] = {
    "transformer": TransformerHeads,
    "shared": SharedHeads,
    "linear": LinearHeads,
    "linear_pooled": PooledLinearHeads,
    "imitation": ImitationHeads,
    "imitation_all": ImitateAllHeads,
    "adapter": AdapterHeads,
    "meta": MetaHeads,
}


DEFAULT_HEAD = "transformer"
"""Kind of ``--exit-layers`` without ``--exit-head``, and in checkpoints without that argument."""


def describe_heads() -> str:
    """Return the kinds of heads for a help text: name and what it is."""
    return "; ".join(f"{name}, {cls.summary}" for name, cls in HEADS.items())


def register_head(name: str) -> Callable[[type[ExitHeads]], type[ExitHeads]]:
    """Make a kind of head available as ``--exit-head NAME``; a class decorator.

    Raises:
        ValueError: the name is taken, or the class does not extend ExitHeads.
    """

    def add(cls: type[ExitHeads]) -> type[ExitHeads]:
        if name in HEADS:
            raise ValueError(f"a kind of exit head named {name!r} exists already")
        if not issubclass(cls, ExitHeads):
            raise ValueError(f"{cls.__name__} must extend ExitHeads")
        HEADS[name] = cls
        return cls

    return add


def build_heads(cfg: Any, backbone: Any) -> ExitHeads:
    """Return the heads that the model's arguments ask for.

    Without ``--exit-layers`` every layer before the last has the shared head.

    Raises:
        ValueError: ``--exit-head`` is unknown, or ``--exit-layers`` makes no sense.
    """
    layers = parse_exit_layers(cfg.exit_layers, cfg.decoder_layers)
    if cfg.exit_head not in HEADS:
        raise ValueError(
            f"--exit-head {cfg.exit_head!r} is none of {', '.join(HEADS)}; others need the "
            "--user-dir that registers them"
        )
    if not layers:
        if cfg.exit_head not in ("shared", DEFAULT_HEAD):
            raise ValueError(f"--exit-head {cfg.exit_head} needs --exit-layers")
        return SharedHeads(range(1, cfg.decoder_layers))
    return HEADS[cfg.exit_head].build(layers, cfg, backbone)

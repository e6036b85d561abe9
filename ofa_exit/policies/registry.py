"""Policies by name: the choices of ``--exit-policy``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

POLICIES: dict[str, type[ExitPolicy]] = {
    "static": StaticExit,
    "similarity": SimilarityExit,
    "confidence": ConfidenceExit,
}


def register_policy(name: str) -> Callable[[type[ExitPolicy]], type[ExitPolicy]]:
    """Class decorator that makes a policy available as ``--exit-policy NAME``.

    Raises ValueError if the name is taken or the class is no ExitPolicy.
    """

    def add(cls: type[ExitPolicy]) -> type[ExitPolicy]:
        if name == "none" or name in POLICIES:
            raise ValueError(f"an exit policy named {name!r} exists already")
        if not issubclass(cls, ExitPolicy):
            raise ValueError(f"{cls.__name__} must extend ExitPolicy")
        POLICIES[name] = cls
        return cls

    return add


def build_policy(name: str, **options: Any) -> ExitPolicy:
    """The policy registered under ``name``; ``options`` go to its constructor.

    Raises ValueError for an unknown name or options that the policy refuses.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown exit policy {name!r}; choose from {['none', *POLICIES]}")
    try:
        return POLICIES[name](**options)
    except TypeError as error:
        raise ValueError(f"exit policy {name!r}: {error}") from error

"""Policies by name: the choices of ``--exit-policy``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.calm import MetaExit, SaturationExit, SoftmaxDiffExit, SoftmaxExit
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.entropy import EntropyExit
from ofa_exit.policies.learned import LearnedExit
from ofa_exit.policies.patience import PatienceExit
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

POLICIES: dict[str, type[ExitPolicy]] = {
    "similarity": SimilarityExit,
    "static": StaticExit,
    "confidence": ConfidenceExit,
    "entropy": EntropyExit,
    "patience": PatienceExit,
    "softmax": SoftmaxExit,
    "softmax_diff": SoftmaxDiffExit,
    "saturation": SaturationExit,
    "meta": MetaExit,
    "learned": LearnedExit,
}
"""Where several policies take the options of a sweep's setting, the first of them is meant."""

RESERVED = (
    *("policy", "preset", "options", "late_options", "config", "kv", "trace", "layers", "head"),
)
"""Options ``--exit-…`` of the runtime and the model, which no policy's field can have."""


def register_policy(name: str) -> Callable[[type[ExitPolicy]], type[ExitPolicy]]:
    """Make a policy available as ``--exit-policy NAME``; a class decorator above ``@dataclass``.

    Raises:
        ValueError: the name is taken, or the class is no dataclass that extends ExitPolicy.
    """

    def add(cls: type[ExitPolicy]) -> type[ExitPolicy]:
        if name == "none" or name in POLICIES:
            raise ValueError(f"an exit policy named {name!r} exists already")
        if not issubclass(cls, ExitPolicy):
            raise ValueError(f"{cls.__name__} must extend ExitPolicy")
        if "__dataclass_fields__" not in vars(cls):
            raise ValueError(f"{cls.__name__} must be a dataclass: add @dataclass below the name")
        for declared in policy_options(cls).values():
            if option_name(declared) in RESERVED:
                raise ValueError(
                    f"--exit-{option_name(declared)} has another meaning: give the field "
                    f"{declared.name} of {cls.__name__} another name, or option(…, flag=…)"
                )
        POLICIES[name] = cls
        return cls

    return add


def policy_options(cls: type[ExitPolicy]) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a policy that are options, by name, in their order."""
    declared = dataclasses.fields(cls)  # type: ignore[arg-type]
    return {one.name: one for one in declared if one.metadata}


def option_name(declared: dataclasses.Field[Any]) -> str:
    """Return the name of a field's option, without its prefix ``exit_``."""
    return (declared.metadata["flag"] or declared.name).replace("-", "_")


def build_policy(name: str, **options: Any) -> ExitPolicy:
    """Return the policy registered under ``name`` with these values of its fields.

    Raises:
        ValueError: the name is unknown, or the policy rejects an option.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown exit policy {name!r}; choose from {['none', *POLICIES]}")
    try:
        return POLICIES[name](**options)
    except TypeError as error:
        raise ValueError(f"exit policy {name!r}: {error}") from error

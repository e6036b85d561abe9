"""Settings to calibrate: the grid of a policy's numeric options, all of them at once."""

import itertools
import json
import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from ofa_exit.cli.grid import ExitSetting, Grid, exit_settings
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.options import option_fields, policy_flags
from ofa_exit.policies.base import field_type
from ofa_exit.policies.registry import POLICIES, policy_options
from ofa_exit.policies.thresholds import PerLayer

MOST_SETTINGS = 150
VALUES_OF_RANGE = 8
MULTIPLES = (0.25, 0.5, 1, 2, 4)  # of the default of a number without a range


@dataclass(frozen=True)
class Axis:
    """An option and the values to try.

    Attributes:
        option: its name, ``exit_decoder_threshold``.
        values: the most careful first.
        is_ordered: a later value never exits later, so that what lies between two values with the
            same outcome has this outcome, too.
        is_per_layer: the option takes a list, one number after each layer but the last.
    """

    option: str
    values: list[Any]
    is_ordered: bool
    is_per_layer: bool


@dataclass(frozen=True)
class Candidates:
    """Settings to calibrate: the first one is full depth, the others form a grid.

    Attributes:
        shape: numbers of values along the axes; empty if their order is unknown.
    """

    settings: list[ExitSetting]
    shape: tuple[int, ...]


def full_depth() -> ExitSetting:
    """Return the setting without exits."""
    return ExitSetting("full depth", "calibrate", {}, Namespace(exit_kv=None), None)


def candidates(cfg: Any, task: str, arguments: Any) -> Candidates:
    """Return the settings of the policy that the command line names.

    Options that are given there are the same in all settings.

    Args:
        cfg: options of the task.
        task: kind of task, "caption" or "answer", whose defaults hold.
        arguments: those of the model; None if they cannot be read before it is loaded.

    Raises:
        UsageError: the policy has no numeric option, or the given options do not fit.
    """
    policy = cfg.exit_policy

    def settings_of(grid: Grid) -> list[ExitSetting]:
        found = exit_settings(grid, cfg, task, "calibrate", "calibrate")
        for setting in found if arguments is not None else ():
            setting.check_arguments(arguments)
        return found

    numeric = list(_axes(policy))
    if numeric:
        settings_of([{"exit_policy": policy}])  # rejects what is given
    late = json.loads(cfg.exit_late_options or "{}")
    free = [one for one in numeric if getattr(cfg, one.option, late.get(one.option)) is None]
    fitting = [_fitting(axis, policy, settings_of) for axis in free]
    axes = [axis for axis in fitting if axis.values]
    if not axes:
        raise UsageError(
            f"--exit-policy {policy} has no numeric option to calibrate: choose another policy, or "
            "leave its options out"
        )
    axes = _with_layers(_thinned(axes), policy, arguments, settings_of)
    grid = [
        {"exit_policy": policy, **dict(zip((axis.option for axis in axes), values))}
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    is_ordered = all(axis.is_ordered for axis in axes)
    shape = tuple(len(axis.values) for axis in axes) if is_ordered else ()
    return Candidates([full_depth(), *settings_of(grid)], shape)


def _axes(policy: str) -> Iterator[Axis]:
    """Yield the numeric options of a policy: those with ``tries``, or else all of them."""
    if policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise UsageError(f"--exit-policy {policy!r} cannot be calibrated: choose from {known}")
    cls, names, flags = POLICIES[policy], option_fields(policy), policy_flags()
    declared = policy_options(cls)
    has_tries = any(one.metadata["tries"] for one in declared.values())
    for name, one in declared.items():
        kind, tries = field_type(cls, name), one.metadata["tries"]
        is_number = kind in (int, float) or kind == PerLayer
        if not is_number or (has_tries and not tries) or names[name] not in flags:
            continue
        values = list(tries) or _spread(one, kind)
        yield Axis(names[name], values, bool(tries), kind == PerLayer)


def _spread(declared: Any, kind: Any) -> list[Any]:
    """Return values of a number that declares none: over its range, or around its default."""
    low, high = declared.metadata["at_least"], declared.metadata["at_most"]
    if low is not None and high is not None:
        step = (high - low) / (VALUES_OF_RANGE - 1)
        values = [low + step * number for number in range(VALUES_OF_RANGE)]
    elif declared.default is MISSING or not declared.default:
        return []
    else:
        values = [declared.default * factor for factor in MULTIPLES]
    if kind is int:
        values = [round(value) for value in values]
    return list(dict.fromkeys(values))


def _fitting(axis: Axis, policy: str, settings_of: Any) -> Axis:
    """Return the axis with the values that the model can follow."""
    values = []
    for value in axis.values:
        try:
            settings_of([{"exit_policy": policy, axis.option: value}])
        except UsageError:
            continue
        values.append(value)
    return Axis(axis.option, values, axis.is_ordered, axis.is_per_layer)


def _count(axes: Sequence[Axis]) -> int:
    return math.prod(len(axis.values) for axis in axes)


def _thinned(axes: list[Axis]) -> list[Axis]:
    """Shorten the longest axes until the settings are few enough; both ends of each stay."""
    sizes = [len(axis.values) for axis in axes]
    while math.prod(sizes) > MOST_SETTINGS:
        sizes[sizes.index(max(sizes))] -= 1
    return [
        Axis(axis.option, _evenly(axis.values, size), axis.is_ordered, axis.is_per_layer)
        for axis, size in zip(axes, sizes)
    ]


def _evenly(values: Sequence[Any], size: int) -> list[Any]:
    """Return ``size`` of the values, the first and the last among them if there are two."""
    step = (len(values) - 1) / max(1, size - 1)
    return [values[round(number * step)] for number in range(size)]


def _with_layers(axes: list[Axis], policy: str, arguments: Any, settings_of: Any) -> list[Axis]:
    """Add thresholds per layer: between two values, one that deeper layers already have.

    The last axes, the decoder's, come first, as far as the settings stay few enough.
    """
    for number in reversed(range(len(axes))):
        axis = axes[number]
        if not axis.is_per_layer or not axis.is_ordered or arguments is None:
            continue
        for layers in (arguments.decoder_layers, arguments.encoder_layers):
            steps = Axis(axis.option, _half_steps(axis.values, layers - 1), True, True)
            fits = len(_fitting(steps, policy, settings_of).values) == len(steps.values)
            few = _count([*axes[:number], steps, *axes[number + 1 :]]) <= MOST_SETTINGS
            if fits and few:
                axes[number] = steps
                break
    return axes


def _half_steps(values: Sequence[Any], length: int) -> list[Any]:
    """Return the values and, between two of them, lists: the first one in the lower half."""
    steps: list[Any] = []
    for value, later in zip(values, values[1:]):
        lower = length - length // 2
        mixed = ",".join(f"{one:g}" for one in [value] * lower + [later] * (length - lower))
        steps += [value, mixed] if length > 1 else [value]
    return [*steps, *values[-1:]]

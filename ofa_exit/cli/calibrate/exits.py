"""The exit options that a calibration records and writes."""

import contextlib
import json
from argparse import Namespace
from typing import Any, Optional

from ofa_exit.cli.calibrate.candidates import Candidates
from ofa_exit.cli.grid import ExitSetting, exit_settings
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.options import COMMON, option_fields, policy_flags


def fixed_options(found: Candidates) -> dict[str, Any]:
    """Return the exit options of the command line, which all settings share."""
    setting = found.settings[-1]
    names = (*COMMON, *policy_flags())
    late = json.loads(setting.options.exit_late_options or "{}")
    values = {name: getattr(setting.options, name, None) for name in names}
    values = {**late, **{name: value for name, value in values.items() if value is not None}}
    return {name: value for name, value in values.items() if name not in setting.given}


def fitted_digest(found: Candidates) -> dict[str, str]:
    """Return as "fitted" what changes with the numbers that a policy was fitted to have, if any."""
    policy = found.settings[-1].policy
    origin = None if policy is None else policy.origin
    return {} if origin is None else {"fitted": origin.digest}


def in_full(exits: dict[str, Any], task: str, arguments: Optional[Namespace]) -> dict[str, Any]:
    """Return exit options with all defaults in force, which later versions may change.

    Those that the model cannot follow, and that others make useless, are left out: it is an error
    to give them.

    Args:
        task: the kind of task, whose defaults hold.
        arguments: those of the model, None where they cannot be read.
    """
    plain = Namespace(exit_policy="none", exit_trace=None)

    def setting_of(options: dict[str, Any]) -> ExitSetting:
        (setting,) = exit_settings([options], plain, task, "calibrate", "calibrate")
        if arguments is not None:
            setting.check_arguments(arguments)
        return setting

    setting = setting_of(exits)
    if setting.policy is None or arguments is None:  # then what fits is unknown
        return exits
    names, flags = option_fields(setting.options.exit_policy), policy_flags()
    defaults = {option: getattr(setting.policy, field) for field, option in names.items()}
    for option, value in {**defaults, "exit_kv": setting.kv}.items():
        if option in exits or option not in (*flags, "exit_kv"):
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        if not isinstance(text, (str, int, float)):
            continue
        with contextlib.suppress(UsageError):
            setting_of({**exits, option: text})
            exits = {**exits, option: text}
    return exits

"""Early-exit flags of all tasks: the fields of the policies, and the runtime's own options."""

import argparse
import dataclasses
import json
import os
import typing
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass

from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.policies.base import ExitPolicy, OptionError
from ofa_exit.policies.registry import POLICIES, build_policy, policy_options
from ofa_exit.runtime.kv_cache import KV_MODES

PREFIX = "exit_"


def flag(name: str) -> str:
    """Return the flag of an option: ``exit_kv`` -> ``--exit-kv``."""
    return "--" + name.replace("_", "-")


def option_name(declared: dataclasses.Field[Any]) -> str:
    """Return the option that a policy's field has: ``alpha`` -> ``exit_alpha``."""
    return PREFIX + (declared.metadata["flag"] or declared.name).replace("-", "_")


def option_fields(name: str) -> dict[str, str]:
    """Return the options of the policy ``name``: field -> option."""
    return {key: option_name(one) for key, one in policy_options(POLICIES[name]).items()}


def _kind(cls: type[ExitPolicy], name: str) -> Any:
    """Return what the command line reads for a field: a number, or else a text."""
    hint = typing.get_type_hints(cls)[name]
    return hint if hint in (int, float) else str


def _shared_options() -> dict[str, tuple[Any, str]]:
    """Return every option of the registered policies: its type and help."""
    options: dict[str, tuple[Any, str]] = {}
    for policy, cls in POLICIES.items():
        for name, declared in policy_options(cls).items():
            help = f"{declared.metadata['help']} (--exit-policy {policy})"
            options.setdefault(option_name(declared), (_kind(cls, name), help))
    return options


def _with_policy_options(cls: type) -> type:
    """Add a field per option of the registered policies; a class decorator below ``@dataclass``."""
    for name, (kind, help) in _shared_options().items():
        cls.__annotations__[name] = Optional[kind]
        setattr(cls, name, field(default=None, metadata={"help": help}))
    return cls


@dataclass
@_with_policy_options
class ExitFlags(FairseqDataclass):
    """Options of generation, and of the generation that validates captions."""

    exit_policy: str = field(default="none", metadata={"help": "early-exit rule"})
    exit_preset: Optional[str] = field(
        default=None,
        metadata={
            "help": "published thresholds of a policy; flags given beside it win: "
            + ", ".join(preset for cls in POLICIES.values() for preset in cls.presets)
        },
    )
    exit_kv: Optional[str] = field(
        default=None,
        metadata={
            "help": "how to fill the K/V cache of skipped layers: propagate the exit state "
            "(cheap), recompute the layers (exact), or copy the exit layer's cache (MuE's "
            "released code; worse) (default: propagate)"
        },
    )
    exit_options: Optional[str] = field(
        default=None,
        metadata={"help": 'options of the policy as a JSON object, {"alpha": 0.9}'},
    )
    exit_trace: Optional[str] = field(
        default=None,
        metadata={"help": "file for the layers that each word used, one JSON object per sentence"},
    )

    def _get_help(self, attribute_name: str) -> Any:
        # Called when a command line is parsed: policies may be registered after this module.
        text = super()._get_help(attribute_name)
        if attribute_name == "exit_policy":
            text += f": {', '.join(['none', *POLICIES])}, or any other that is registered"
        return text


class _IntoJson(argparse.Action):
    """Add the value of a policy's flag to ``--exit-options``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            options = json.loads(getattr(namespace, "exit_options", None) or "{}")
        except ValueError:
            parser.error(f"--exit-options {namespace.exit_options!r} is not JSON")
        namespace.exit_options = json.dumps({**options, self.const: values})


def add_late_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of policies that were registered after ``ExitFlags`` was made.

    fairseq keeps the options that a task's dataclass names, so their values travel in
    ``exit_options``.
    """
    known = {one.name for one in dataclasses.fields(ExitFlags)}
    for cls in POLICIES.values():
        for name, declared in policy_options(cls).items():
            option = option_name(declared)
            if option in known:
                continue
            known.add(option)
            parser.add_argument(
                flag(option),
                action=_IntoJson,
                const=name,
                dest=argparse.SUPPRESS,
                type=_kind(cls, name),
                help=declared.metadata["help"],
                metavar=declared.metadata["metavar"],
            )


@usage_errors()
def build_exit_policy(cfg: Any, task: str) -> Optional[ExitPolicy]:
    """Return the policy that the options ask for; None to run every layer.

    Args:
        cfg: options named as in ``ExitFlags``.
        task: kind of task, "caption" or "answer", whose defaults hold.

    Raises:
        ValueError: options make no sense, alone or together.
    """
    given = {name for name in _shared_options() if getattr(cfg, name, None) is not None}
    if cfg.exit_kv is not None and cfg.exit_kv not in KV_MODES:
        raise ValueError(f"--exit-kv {cfg.exit_kv!r} is none of {', '.join(KV_MODES)}")
    _check_trace(cfg.exit_trace)
    preset = getattr(cfg, "exit_preset", None)
    name = cfg.exit_policy
    if preset is not None:
        name = _policy_of_preset(preset, name)
    if name == "none":
        _reject_without_policy(cfg, given)
        return None
    if name not in POLICIES:
        raise ValueError(f"--exit-policy {name!r} is none of {', '.join(['none', *POLICIES])}")
    cls, names = POLICIES[name], option_fields(name)
    foreign = sorted(given - set(names.values()))
    if foreign:
        taken = ", ".join(map(flag, names.values())) or "no options"
        raise ValueError(
            f"--exit-policy {name} does not take {', '.join(map(flag, foreign))}; it takes {taken}"
        )
    values = {key: getattr(cfg, option) for key, option in names.items() if option in given}
    values.update(_json_options(cfg.exit_options, name, set(values)))
    for key, declared in policy_options(cls).items():
        required = declared.default is dataclasses.MISSING
        if required and key not in values:
            metavar = declared.metadata["metavar"] or key.upper()
            raise ValueError(f"--exit-policy {name} needs {flag(names[key])} {metavar}")
    published = cls.presets.get(preset, {}).get(task, {}) if preset else {}
    try:
        policy = build_policy(name, **{**cls.defaults(task), **published, **values})
    except OptionError as error:
        raise ValueError(f"{flag(names[error.name])} {error.problem}") from None
    policy.given = frozenset(values)
    return policy


@usage_errors()
def reject_misfit(cfg: Any, policy: Optional[ExitPolicy], model: Any) -> None:
    """Raise ValueError for options that a model cannot follow."""
    if policy is None:
        return
    if not isinstance(model, OFAModel):
        raise ValueError(f"--exit-policy needs an OFA model, {type(model).__name__} has no exits")
    reject_misfit_arguments(cfg, policy, model.cfg)


@usage_errors()
def reject_misfit_arguments(cfg: Any, policy: ExitPolicy, arguments: Any) -> None:
    """Raise ValueError for options that a model of these arguments cannot follow."""
    policy.check(arguments)
    if cfg.exit_kv == "copy" and getattr(arguments, "exit_layers", None):
        raise ValueError(
            "--exit-kv copy is that of MuE's released code, which has no exit heads; this model "
            "has --exit-layers: use propagate or recompute"
        )


def _policy_of_preset(preset: str, name: str) -> str:
    """Return the policy that a preset belongs to."""
    owners = {one: policy for policy, cls in POLICIES.items() for one in cls.presets}
    if preset not in owners:
        raise ValueError(f"--exit-preset {preset!r} is none of {', '.join(owners)}")
    if name not in ("none", owners[preset]):
        raise ValueError(
            f"--exit-preset {preset} is for --exit-policy {owners[preset]}, not {name}"
        )
    return owners[preset]


def _reject_without_policy(cfg: Any, given: set[str]) -> None:
    used = [option for option in _shared_options() if option in given]
    used += [option for option in ("exit_kv", "exit_options") if getattr(cfg, option)]
    if not used:
        return
    owners = [name for name in POLICIES if used[0] in option_fields(name).values()]
    policy = owners[0] if owners else "similarity (or another)"
    raise ValueError(
        f"{', '.join(map(flag, used))} without an exit policy: add --exit-policy {policy}, or "
        "leave it out"
    )


def _json_options(text: Optional[str], name: str, given: set[str]) -> dict[str, Any]:
    """Return the fields that ``--exit-options`` gives."""
    try:
        options = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--exit-options {text!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'--exit-options {text!r}: give a JSON object, {{"name": value}}')
    names = option_fields(name)
    twice = sorted(options.keys() & given)
    if twice:
        raise ValueError(
            f"--exit-options gives {', '.join(twice)}, and so does {flag(names[twice[0]])}"
        )
    foreign = [key for key in options if key not in names]
    if foreign:
        raise ValueError(
            f"--exit-policy {name} does not take option {', '.join(map(repr, foreign))}; it takes "
            f"{', '.join(names) or 'no options'}"
        )
    return options


def _check_trace(path: Optional[str]) -> None:
    """Check the file early: it is opened when the model is there, and then it should not fail."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(
            f"--exit-trace {path!r} cannot be written: name a file in a folder that exists and may "
            "be written to"
        )

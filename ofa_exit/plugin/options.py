"""Early-exit flags of all tasks: the fields of the policies, and the runtime's own options."""

import argparse
import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

from fairseq.dataclass import FairseqDataclass

from ofa_exit.evaluation.efficiency.report import is_trace
from ofa_exit.heads.base import parse_exit_layers
from ofa_exit.heads.registry import DEFAULT_HEAD, HEADS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.tasks.files import first_folder
from ofa_exit.policies.base import ExitPolicy, OptionError, field_type
from ofa_exit.policies.registry import POLICIES, build_policy, option_name, policy_options
from ofa_exit.regular_files import check_output
from ofa_exit.runtime.kv_cache import check_kv_mode

PREFIX = "exit_"


def flag(name: str) -> str:
    """Return the flag of an option: ``exit_kv`` -> ``--exit-kv``."""
    return "--" + name.replace("_", "-")


def shortened(text: Any) -> str:
    """Return a value as a message shows it."""
    return repr(text) if len(repr(text)) <= 80 else f"{repr(text)[:80]}…"


def option_fields(name: str) -> dict[str, str]:
    """Return the options of the policy ``name``: field -> option."""
    return {k: PREFIX + option_name(one) for k, one in policy_options(POLICIES[name]).items()}


def _kind(cls: type[ExitPolicy], declared: dataclasses.Field[Any]) -> Any:
    """Return what the command line reads for a field: a number, or else a text.

    A field that is off by default is a switch, bool.
    """
    kind = field_type(cls, declared.name)
    is_switch = kind is bool and declared.default is False
    return kind if kind in (int, float) or is_switch else str


class Flag(NamedTuple):
    """What a command line needs for an option."""

    kind: Any
    help: str
    metavar: Optional[str]


def policy_flags() -> dict[str, Flag]:
    """Return every option of the registered policies, by name.

    Policies may share an option of one meaning; the first one's help is shown.
    """
    options: dict[str, Flag] = {}
    takers: dict[str, list[str]] = {}
    for policy, cls in POLICIES.items():
        for declared in policy_options(cls).values():
            option, rules = PREFIX + option_name(declared), declared.metadata
            takers.setdefault(option, []).append(policy)
            options.setdefault(option, Flag(_kind(cls, declared), rules["help"], rules["metavar"]))
    return {
        option: own._replace(help=f"{own.help} (--exit-policy {', '.join(takers[option])})")
        for option, own in options.items()
    }


def _with_policy_options(cls: type) -> type:
    """Add a field per option of the registered policies; a class decorator below ``@dataclass``."""
    for name, own in policy_flags().items():
        cls.__annotations__[name] = Optional[own.kind]
        setattr(cls, name, field(default=None, metadata={"help": own.help}))
    return cls


@dataclass
@_with_policy_options
class ExitFlags(FairseqDataclass):
    """Options of generation, and of the generation that validates captions."""

    exit_policy: str = field(default="none", metadata={"help": "early-exit rule"})
    exit_preset: Optional[str] = field(
        default=None,
        metadata={
            "help": "published thresholds of a policy; explicit flags take precedence: "
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
    exit_late_options: Optional[str] = field(
        default=None, metadata={"help": argparse.SUPPRESS}
    )  # options of policies that were registered after this class was made, as JSON
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


class _LateOption(argparse.Action):
    """Add an option to ``exit_late_options``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        options = json.loads(getattr(namespace, "exit_late_options", None) or "{}")
        value = True if self.nargs == 0 else values
        namespace.exit_late_options = json.dumps({**options, self.const: value})


def add_late_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of policies that were registered after ``ExitFlags`` was made.

    fairseq keeps only the options that a task's dataclass names, so their values travel in
    ``exit_late_options``.
    """
    known = {one.name for one in dataclasses.fields(ExitFlags)}
    for name, own in policy_flags().items():
        if name not in known:
            parser.add_argument(
                flag(name),
                action=_LateOption,
                const=name,
                dest=argparse.SUPPRESS,
                nargs=0 if own.kind is bool else None,
                type=own.kind,
                help=own.help,
                metavar=own.metavar or name.removeprefix(PREFIX).upper(),
            )


def _given(cfg: Any) -> dict[str, Any]:
    """Return the options of policies that were given, in the order of ``policy_flags``."""
    late = json.loads(getattr(cfg, "exit_late_options", None) or "{}")
    values = {name: getattr(cfg, name, late.get(name)) for name in policy_flags()}
    return {name: value for name, value in values.items() if value is not None}


@usage_errors()
def build_exit_policy(cfg: Any, task: str) -> Optional[ExitPolicy]:
    """Return the policy that the options ask for; None to run every layer.

    Args:
        cfg: options named as in ``ExitFlags``.
        task: kind of task, "caption" or "answer", whose defaults hold.

    Raises:
        ValueError: options make no sense, alone or together.
    """
    given = _given(cfg)
    if cfg.exit_kv is not None:
        check_kv_mode(cfg.exit_kv, heads_cache_kv=False)
    _check_trace(cfg)
    preset = getattr(cfg, "exit_preset", None)
    name = cfg.exit_policy
    if preset is not None:
        name = _policy_of_preset(preset, name)
    if name == "none":
        _reject_without_policy(cfg, given)
        return None
    if name not in POLICIES:
        choices = ", ".join(["none", *POLICIES])
        raise ValueError(f"unknown --exit-policy {name!r}: choose from {choices}")
    cls, names = POLICIES[name], option_fields(name)
    foreign = sorted(given.keys() - set(names.values()))
    if foreign:
        taken = ", ".join(map(flag, names.values())) or "no options"
        raise ValueError(
            f"--exit-policy {name} does not take {', '.join(map(flag, foreign))}; it takes {taken}"
        )
    values = {
        key: _as_read(cls, key, given[option]) for key, option in names.items() if option in given
    }
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
    kind = getattr(arguments, "exit_head", DEFAULT_HEAD)
    heads = HEADS.get(kind)
    layers = parse_exit_layers(getattr(arguments, "exit_layers", None), arguments.decoder_layers)
    if policy.needs_confidence and not (layers and heads and heads.has_confidence):
        able = " or ".join(name for name, cls in HEADS.items() if cls.has_confidence)
        found = f"--exit-head {kind}" if layers else "no --exit-layers"
        raise ValueError(
            f"--exit-policy {cfg.exit_policy} needs exit heads with a learned confidence, and the "
            f"model has {found}: train --exit-layers with --exit-head {able}"
        )
    if cfg.exit_kv is not None:
        caches_kv = bool(heads and heads.caches_kv and policy.select_heads(layers))
        check_kv_mode(cfg.exit_kv, caches_kv)


def _as_read(cls: type[ExitPolicy], name: str, value: Any) -> Any:
    """Return the number of a text, where a flag is shared with a policy that reads a text."""
    kind = field_type(cls, name)
    if kind not in (int, float) or not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        return value  # which the policy rejects


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


def _reject_without_policy(cfg: Any, given: dict[str, Any]) -> None:
    used = list(given)
    used += [option for option in ("exit_kv", "exit_options") if getattr(cfg, option)]
    if not used:
        return
    owners = [name for name in POLICIES if used[0] in option_fields(name).values()]
    policy = owners[0] if owners else f"{next(iter(POLICIES))} (or another)"
    raise ValueError(
        f"{', '.join(map(flag, used))} without an exit policy: add --exit-policy {policy}, or "
        "leave it out"
    )


def _json_options(text: Optional[str], name: str, given: set[str]) -> dict[str, Any]:
    """Return the fields that ``--exit-options`` gives."""
    try:
        options = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--exit-options {shortened(text)} is not JSON: {error}") from error
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


def _check_trace(cfg: Any) -> None:
    """Check the trace's files before the model is loaded, which is when they are opened."""
    path = cfg.exit_trace
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(
            f"--exit-trace {path!r} cannot be written: name a file in a folder that exists and may "
            "be written to"
        )
    for name in _trace_files(cfg):
        check_output("--exit-trace", name, inputs_of(cfg))
        if os.path.isfile(name) and not is_trace(name):
            raise ValueError(
                f"--exit-trace {name!r} exists and is no exit trace: it would be overwritten. Name "
                "another file, or delete it"
            )


def _trace_files(cfg: Any) -> list[str]:
    """Return the files that ``--exit-trace`` names, one per model."""
    models = len((getattr(cfg, "path", None) or "").split(os.pathsep))
    more = [f"{cfg.exit_trace}.{number}" for number in range(2, models + 1)]
    return [cfg.exit_trace, *more]


def inputs_of(cfg: Any) -> list[Any]:
    """Return what names the files that a task reads, see ``regular_files.paths_in``."""
    named = ("data", "path", "answers", "ans2label_file", "resnet_model_path")
    folders = (getattr(cfg, "bpe_dir", None), first_folder(getattr(cfg, "data", None)))
    words = ("dict.txt", "encoder.json", "vocab.bpe", "train.tsv", "valid.tsv", "test.tsv")
    inside = [os.path.join(folder, name) for folder in folders if folder for name in words]
    return [*(getattr(cfg, name, None) for name in named), inside]

"""Early-exit flags of all tasks: the fields of the policies, and the runtime's own options."""

import argparse
import dataclasses
import functools
import json
import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

from fairseq.dataclass import FairseqDataclass

from ofa_exit.heads.base import parse_exit_layers
from ofa_exit.heads.registry import DEFAULT_HEAD, HEADS
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.drafts import build_drafting, check_lossless
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.exit_config import read_exit_config
from ofa_exit.plugin.exits_given import exits_given
from ofa_exit.plugin.image_tokens import build_token_exits, reject_token_misfit
from ofa_exit.plugin.outputs import check_trace
from ofa_exit.policies.base import ExitPolicy, OptionError, field_type
from ofa_exit.policies.registry import POLICIES, build_policy, option_name, policy_options
from ofa_exit.runtime.kv_cache import check_kv_mode
from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)
PREFIX = "exit_"
# Options of every policy. A trace belongs to a single generation.
COMMON = (
    "exit_policy",
    "exit_preset",
    "exit_kv",
    "exit_image_tokens",
    "exit_options",
    "exit_config",
)


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
    return dict(_flags_of(tuple(POLICIES.items())))  # policies may be registered later


@functools.cache
def _flags_of(policies: tuple[tuple[str, type[ExitPolicy]], ...]) -> dict[str, Flag]:
    options: dict[str, Flag] = {}
    takers: dict[str, list[str]] = {}
    for policy, cls in policies:
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
    exit_image_tokens: Optional[str] = field(
        default=None,
        metadata={
            "help": "share of an image's tokens that run after encoder layer 1, as 0.5: those that "
            "a layer changes least exit; or one share after each layer but the last, as "
            "0.8,0.6,0.4. With any --exit-policy, or without one (default: all tokens run)"
        },
    )
    exit_options: Optional[str] = field(
        default=None,
        metadata={"help": 'options of the policy as a JSON object, {"alpha": 0.9}'},
    )
    exit_config: Optional[str] = field(
        default=None,
        metadata={
            "help": "file of ofa-exit calibrate: exit policy and options with a guarantee, for the "
            "checkpoint and task that they were calibrated for"
        },
    )
    exit_late_options: Optional[str] = field(
        default=None, metadata={"help": argparse.SUPPRESS}
    )  # options of policies that were registered after this class was made, as JSON
    exit_lossless: Optional[int] = field(
        default=None,
        metadata={
            "help": "lossless mode, for greedy search: draft so many tokens at a time by the first "
            "layers and verify them at full depth in one pass. Captions are those of full depth; "
            "needs --beam 1 and no --exit-policy"
        },
    )
    exit_lossless_layer: Optional[int] = field(
        default=None,
        metadata={
            "help": "decoder layer after which --exit-lossless drafts (default: a third of the "
            "layers)"
        },
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
        cfg: options named as in ``ExitFlags``. A file of ``exit_config`` sets the others, and a
            preset sets ``exit_policy``.
        task: kind of task, "caption" or "answer", whose defaults hold.

    Raises:
        ValueError: options make no sense, alone or together.
    """
    take_exit_config(cfg)
    given = _given(cfg)
    if cfg.exit_kv is not None:
        check_kv_mode(cfg.exit_kv, heads_cache_kv=False)
    check_trace(cfg)
    check_lossless(cfg)
    build_token_exits(cfg)
    preset = getattr(cfg, "exit_preset", None)
    name = cfg.exit_policy
    if preset is not None:
        name = cfg.exit_policy = _policy_of_preset(preset, name)
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
    for key in values:
        doubts = policy_options(cls)[key].metadata["doubts"]
        problem = doubts and doubts(getattr(policy, key))
        if problem:
            _warn_once(f"{flag(names[key])} {given.get(names[key], values[key])}: {problem}")
    return policy


@functools.cache
def _warn_once(text: str) -> None:
    """Log a warning, the first time: commands build a policy to check it, and again to use it."""
    logger.warning(text)


def take_exit_config(cfg: Any) -> None:
    """Set the exit options to those of the file that ``--exit-config`` names.

    Raises:
        ValueError: the file is none of ``ofa-exit calibrate``, or other exit options are given.
    """
    path = getattr(cfg, "exit_config", None)
    if path is None:
        return
    exits = read_exit_config(path).exits
    given = {name: getattr(cfg, name, None) for name in COMMON if name != "exit_config"}
    given = {name: value for name, value in {**given, **_given(cfg)}.items() if value is not None}
    if given.get("exit_policy") == "none":
        del given["exit_policy"]
    texts = {name: f"{value}" for name, value in exits.items()}
    if given and {k: f"{v}" for k, v in given.items()} != texts:  # it may be checked twice
        raise ValueError(
            f"--exit-config {path} names all exit options: leave {', '.join(map(flag, given))} out"
        )
    unknown = sorted(exits.keys() - {*COMMON, *policy_flags()})
    if unknown:
        raise ValueError(
            f"--exit-config {path}: unknown option {unknown[0]}. Import the module of its policy "
            "with --user-dir"
        )
    late = {name: value for name, value in exits.items() if not hasattr(cfg, name)}
    for name in exits.keys() - late.keys():
        setattr(cfg, name, exits[name])
    if late:
        cfg.exit_late_options = json.dumps(late)


@usage_errors()
def reject_misfit(cfg: Any, policy: Optional[ExitPolicy], model: Any) -> None:
    """Raise ValueError for options that a model cannot follow."""
    given = exits_given(cfg, policy)
    if not given:
        return
    if not isinstance(model, OFAModel):
        option = flag(given[0])
        raise ValueError(f"{option} needs an OFA model, {type(model).__name__} has no exits")
    reject_misfit_arguments(cfg, policy, model.cfg)


@usage_errors()
def reject_misfit_arguments(cfg: Any, policy: Optional[ExitPolicy], arguments: Any) -> None:
    """Raise ValueError for options that a model of these arguments cannot follow."""
    build_drafting(cfg, arguments.decoder_layers)
    reject_token_misfit(build_token_exits(cfg), arguments.encoder_layers)
    if policy is None:
        return
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

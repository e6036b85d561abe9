"""The options on when to exit, common to all tasks, and what is refused about them."""

import inspect
import json
import os
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass

from ofa_exit.heads.transformer import parse_exit_layers
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.registry import POLICIES, build_policy
from ofa_exit.policies.schedules import THRESHOLD_SCHEDULES, check_threshold
from ofa_exit.policies.similarity import ENCODER_SIMILARITIES
from ofa_exit.policies.static import StaticExit

KV_MODES = ("propagate", "recompute")


@dataclass
class ExitFlags(FairseqDataclass):
    """Options of generation, and of the generation that validates captions."""

    exit_policy: str = field(default="none", metadata={"help": "when to stop"})
    exit_image_threshold: Optional[float] = field(
        default=None,
        metadata={
            "help": "similarity above which the image pass of a --split-modalities model stops; "
            "1 or more: never (default: 0.9)"
        },
    )
    exit_text_threshold: Optional[float] = field(
        default=None,
        metadata={
            "help": "the same for the text pass of a --split-modalities model (default: 0.95)"
        },
    )
    exit_encoder_threshold: Optional[float] = field(
        default=None,
        metadata={
            "help": "the same for the one pass of a model without --split-modalities "
            "(default: never)"
        },
    )
    exit_decoder_threshold: Optional[float] = field(
        default=None,
        metadata={
            "help": "the same for each word in the decoder (default: captioning 0.99, "
            "entailment 0.95)"
        },
    )
    exit_schedule: Optional[str] = field(
        default=None,
        metadata={
            "help": "how the decoder's threshold changes over the words: "
            f"{', '.join(THRESHOLD_SCHEDULES)} (default: captioning decay, entailment static)"
        },
    )
    exit_beta: Optional[float] = field(
        default=None, metadata={"help": "beta of the decay, 0 to 1 (default: 0.95)"}
    )
    exit_tau: Optional[float] = field(
        default=None, metadata={"help": "tau of the decay (default: 1)"}
    )
    exit_encoder_similarity: Optional[str] = field(
        default=None,
        metadata={
            "help": "what the encoder compares: one cosine over all states of a sample, or the "
            f"mean over its tokens: {', '.join(ENCODER_SIMILARITIES)} (default: sample)"
        },
    )
    exit_alpha: Optional[float] = field(
        default=None,
        metadata={
            "help": "probability above which --exit-policy confidence takes the word of an exit "
            "(the model needs --exit-layers); 1 or more: never (default: 0.8)"
        },
    )
    exit_depths: Optional[str] = field(
        default=None,
        metadata={"help": "layers that --exit-policy static runs: IMAGE,TEXT,DECODER"},
    )
    exit_kv: Optional[str] = field(
        default=None,
        metadata={
            "help": "keys and values of skipped layers: projected from the state at exit "
            "(propagate) or computed in full when they are needed (recompute) "
            "(default: propagate)"
        },
    )
    exit_options: Optional[str] = field(
        default=None,
        metadata={
            "help": "further arguments of the policy, yours or one of these, as a JSON object; "
            "of confidence layers, a list of the exits to try (default: all that the model has)"
        },
    )
    exit_trace: Optional[str] = field(
        default=None,
        metadata={"help": "file for the layers that each word took, one JSON object a sentence"},
    )

    def _get_help(self, attribute_name: str) -> Any:
        # Asked when a command line is parsed: policies may be registered after this module.
        text = super()._get_help(attribute_name)
        if attribute_name == "exit_policy":
            text += f": {', '.join(['none', *POLICIES])}, or any other that is registered"
        return text


# What a policy's constructor calls it -> the option that gives it.
OPTIONS = {
    name: f"exit_{name}"
    for name in (
        "image_threshold",
        "text_threshold",
        "encoder_threshold",
        "decoder_threshold",
        "schedule",
        "beta",
        "tau",
        "encoder_similarity",
        "alpha",
        "depths",
    )
}


def flag(option: str) -> str:
    """``exit_kv`` -> ``--exit-kv``."""
    return "--" + option.replace("_", "-")


@usage_errors()
def exit_policy(cfg: Any, similarity_defaults: dict[str, Any]) -> Optional[ExitPolicy]:
    """The policy that the options ask for; None to run every layer.

    similarity_defaults: the task's own defaults of SimilarityExit. Raises ValueError on options
    that make no sense, alone or together.
    """
    given = {name: getattr(cfg, option) for name, option in OPTIONS.items()}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name.endswith("threshold") or name in ("beta", "tau", "alpha"):
            check_threshold(flag(OPTIONS[name]), value)
    if "depths" in given:
        given["depths"] = _depths(given["depths"])
    if cfg.exit_kv is not None and cfg.exit_kv not in KV_MODES:
        raise ValueError(f"--exit-kv {cfg.exit_kv!r} is none of {', '.join(KV_MODES)}")
    _check_trace(cfg.exit_trace)

    if cfg.exit_policy == "none":
        used = [OPTIONS[name] for name in given]
        used += [option for option in ("exit_kv", "exit_options") if getattr(cfg, option)]
        if used:
            policy = "confidence" if "alpha" in given else "similarity (or another)"
            raise ValueError(
                f"{', '.join(map(flag, used))} without an exit policy: add --exit-policy {policy}, "
                "or leave it out"
            )
        return None
    if cfg.exit_policy not in POLICIES:
        raise ValueError(
            f"--exit-policy {cfg.exit_policy!r} is none of {', '.join(['none', *POLICIES])}"
        )
    options = {**given, **_json_options(cfg.exit_options, given)}
    _refuse_foreign(cfg.exit_policy, options)
    if cfg.exit_policy == "static" and "depths" not in options:
        raise ValueError("--exit-policy static needs --exit-depths IMAGE,TEXT,DECODER")
    if cfg.exit_policy == "similarity":
        options = {**similarity_defaults, **options}
        idle = [o for o in ("beta", "tau") if o in given and options.get("schedule") != "decay"]
        if idle:
            raise ValueError(
                f"{', '.join(flag(OPTIONS[o]) for o in idle)} belongs to --exit-schedule decay; "
                f"the schedule is {options.get('schedule')}"
            )
    return build_policy(cfg.exit_policy, **options)


@usage_errors()
def refuse_misfit(cfg: Any, policy: Optional[ExitPolicy], model: Any) -> None:
    """Raises ValueError for options that this model cannot follow."""
    if policy is None:
        return
    if not isinstance(model, OFAModel):
        raise ValueError(f"--exit-policy needs an OFA model, {type(model).__name__} has no exits")
    refuse_misfit_arguments(cfg, policy, model.cfg)


@usage_errors()
def refuse_misfit_arguments(cfg: Any, policy: ExitPolicy, arguments: Any) -> None:
    """The same, told from the arguments of an OFA model alone."""
    if arguments.split_modalities:
        if cfg.exit_encoder_threshold is not None:
            raise ValueError(
                "--exit-encoder-threshold is for a joint encoder; this model has "
                "--split-modalities: use --exit-image-threshold and --exit-text-threshold"
            )
    else:
        for option in ("exit_image_threshold", "exit_text_threshold"):
            if getattr(cfg, option) is not None:
                raise ValueError(
                    f"{flag(option)} needs a model with --split-modalities; this one runs image "
                    "and text together: use --exit-encoder-threshold"
                )
    if isinstance(policy, ConfidenceExit) and not getattr(arguments, "exit_layers", None):
        raise ValueError(
            "--exit-policy confidence needs a model with exits: train them with --exit-layers and "
            "--criterion blipee_adversarial, or use --exit-policy similarity"
        )
    if isinstance(policy, ConfidenceExit) and policy.layers is not None:
        exits = parse_exit_layers(arguments.exit_layers, arguments.decoder_layers)
        absent = sorted(set(policy.layers) - set(exits))
        if absent:
            raise ValueError(
                f"--exit-options names exits behind layers {','.join(map(str, absent))}; the model "
                f"has them behind {','.join(map(str, exits))}"
            )
    if isinstance(policy, StaticExit):
        _check_depths(policy, arguments)


def _check_depths(policy: StaticExit, arguments: Any) -> None:
    encoder, decoder = arguments.encoder_layers, arguments.decoder_layers
    image, text, words = policy.depths
    if max(image, text) > encoder or words > decoder:
        raise ValueError(
            f"--exit-depths {image},{text},{words}: the model has {encoder} encoder and {decoder} "
            "decoder layers"
        )
    if not arguments.split_modalities and image != text:
        raise ValueError(
            f"--exit-depths {image},{text},{words}: a model without --split-modalities runs image "
            "and text together, their depths must be equal"
        )


def _depths(text: str) -> tuple[int, ...]:
    try:
        depths = tuple(int(part) for part in str(text).split(","))
    except ValueError:
        depths = ()
    if len(depths) != 3 or min(depths) < 1:
        raise ValueError(
            f"--exit-depths {text!r}: give three whole numbers of at least 1, IMAGE,TEXT,DECODER"
        )
    return depths


def _json_options(text: Optional[str], given: dict[str, Any]) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"--exit-options {text!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'--exit-options {text!r}: give a JSON object, {{"name": value}}')
    twice = sorted(options.keys() & given.keys())
    if twice:
        raise ValueError(
            f"--exit-options gives {', '.join(twice)}, and so does {flag(OPTIONS[twice[0]])}"
        )
    return options


def _refuse_foreign(name: str, options: dict[str, Any]) -> None:
    """Refuses options that the policy's constructor does not take, under the user's names."""
    parameters = inspect.signature(POLICIES[name]).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    foreign = [option for option in options if option not in parameters]
    if foreign:
        shown = [flag(OPTIONS[o]) if o in OPTIONS else f"option {o!r}" for o in foreign]
        raise ValueError(
            f"--exit-policy {name} does not take {', '.join(shown)}; it takes "
            f"{', '.join(parameters) or 'no options'}"
        )


def _check_trace(path: Optional[str]) -> None:
    """The file is opened later, when the model is there; by then it should not fail."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(
            f"--exit-trace {path!r} cannot be written: name a file in a folder that exists and may "
            "be written to"
        )

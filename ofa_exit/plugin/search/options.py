"""fairseq's generation options: which ones are supported, and how they are read from JSON."""

import json
from argparse import Namespace
from dataclasses import fields
from typing import Any

from fairseq.dataclass.configs import GenerationConfig

from ofa_exit.plugin.errors import UsageError

# Options that no task supports, and why.
UNSUPPORTED = {
    "print_alignment": "the decoder returns no attention weights",
    "replace_unk": "there is no source sentence whose words could replace <unk>",
    "constraints": "the data holds no constraints",
    **dict.fromkeys(
        (
            "print_step",
            "retain_iter_history",
            "iter_decode_eos_penalty",
            "iter_decode_max_iter",
            "iter_decode_force_max_iter",
            "iter_decode_with_beam",
            "iter_decode_with_external_reranker",
            "decoding_format",
        ),
        "generation is autoregressive",
    ),
    **dict.fromkeys(
        ("retain_dropout", "retain_dropout_modules"), "the model uses dropout only in training"
    ),
    **dict.fromkeys(
        ("beam_mt", "max_len_a_mt", "max_len_b_mt", "lenpen_mt"), "the model has one decoder"
    ),
}
# Every generation option of fairseq with its default.
DEFAULTS = {option.name: option.default for option in fields(GenerationConfig)}


def reject_options(args: Any, reasons: dict[str, str]) -> None:
    """Raise UsageError if an option of ``reasons`` (name: why) is not at its default."""
    for option, reason in reasons.items():
        if getattr(args, option, DEFAULTS[option]) != DEFAULTS[option]:
            raise UsageError(f"--{option.replace('_', '-')} is not supported: {reason}")


def generation_options(flag: str, text: str, **defaults: Any) -> Namespace:
    """Return the generation options that ``flag`` gives as a JSON object, over ``defaults``.

    Raises:
        ValueError: not a JSON object, or one with other names.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'{flag} {text!r}: give a JSON object, {{"beam": 5}}')
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise ValueError(
            f"{flag}: fairseq has no generation option {', '.join(unknown)} "
            "(names as in beam, max_len_b, no_repeat_ngram_size)"
        )
    return Namespace(**{**defaults, **options})

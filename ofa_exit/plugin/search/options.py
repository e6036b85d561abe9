"""fairseq's generation options: which ones are supported, and how they are read from JSON."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from fairseq.dataclass.configs import GenerationConfig

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.options import shortened
from ofa_exit.ranges import Range, check_ranges, whole
from ofa_exit.spelling import flag

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
DEFAULTS: dict[str, Any] = {option.name: option.default for option in fields(GenerationConfig)}


MOST_WORDS = 100_000  # no model has as many positions
_REPEATED = {option: whole(0, MOST_WORDS) for option in (
    "max_len_b", "min_len", "no_repeat_ngram_size", "prefix_size")}  # fmt: skip
# A length of 2,000 words to the power of 10 is a number of float32, which scores are divided by.
_RANGES = {
    # fairseq narrows a beam to the vocabulary.
    **dict.fromkeys(("beam", "nbest"), whole(1, 10_000)),
    **_REPEATED,
    "max_len_a": Range(0, MOST_WORDS),
    "lenpen": Range(-10, 10),
    **dict.fromkeys(("unkpen", "diversity_rate"), Range(-1e30, 1e30)),
    "temperature": Range(above=0, most=1e30),
    "sampling_topk": whole(1, off=-1),
    "sampling_topp": Range(above=0, most=1, off=-1),
}


def check_numbers(args: Any, named: Callable[[str], str] = flag) -> None:
    """Raise ValueError for numbers that no generation can use.

    Args:
        args: options of generation; those that are missing have fairseq's defaults.
        named: how a message calls an option.
    """
    given = {option: getattr(args, option, DEFAULTS[option]) for option in _RANGES}
    for option, value in given.items():
        if value is None:
            raise ValueError(f"{named(option)} is None: give a number")
    check_ranges(Namespace(**given), _RANGES, named)


def check_vocabulary(args: Any, words: int, named: Callable[[str], str] = flag) -> None:
    """Raise ValueError for searches that need more words than there are; see ``check_numbers``."""
    topk = getattr(args, "sampling_topk", DEFAULTS["sampling_topk"])
    if topk > words:
        raise ValueError(
            f"{named('sampling_topk')} is {topk}, and the vocabulary has {words} words: give at "
            f"most {words}"
        )


def check_strategy(args: Any) -> None:
    """Raise ValueError for searches that contradict each other; see ``check_numbers``."""
    chosen = [name for name in ("sampling", "match_source_len") if getattr(args, name, False)]
    if getattr(args, "diversity_rate", -1) > 0:
        chosen.append("diversity_rate")
    drawn = [name for name in ("sampling_topk", "sampling_topp") if getattr(args, name, -1) > 0]
    for names in (chosen, drawn):
        if len(names) > 1:
            raise ValueError(f"{' and '.join(map(flag, names))} exclude each other: give one")


def check_search(args: Any, named: Callable[[str], str] = flag) -> None:
    """Raise ValueError for options that leave a beam search nothing to find.

    Arguments are those of ``check_numbers``.
    """
    check_numbers(args, named)
    values = {option: getattr(args, option, DEFAULTS[option]) for option in _RANGES}
    beam, nbest, min_len = values["beam"], values["nbest"], values["min_len"]
    if nbest > beam:
        raise ValueError(
            f"{named('nbest')} is {nbest}, but a beam of {beam} finds {beam} hypotheses: raise "
            f"{named('beam')}"
        )
    for option in ("sampling_topk", "sampling_topp"):
        value = getattr(args, option, DEFAULTS[option])
        if value > 0 and not getattr(args, "sampling", False):
            raise ValueError(f"{named(option)} is {value}: add {named('sampling')}")
    if values["max_len_a"] or getattr(args, "match_source_len", False):
        return  # the length depends on the source
    if values["max_len_b"] < 1:
        raise ValueError(f"{named('max_len_b')} is {values['max_len_b']}: give at least 1")
    if min_len > values["max_len_b"]:
        raise ValueError(
            f"{named('min_len')} is {min_len}, above {named('max_len_b')} {values['max_len_b']}: "
            "lower it"
        )


def reject_options(args: Any, reasons: dict[str, str]) -> None:
    """Raise UsageError if an option of ``reasons`` (name: why) is not at its default."""
    for option, reason in reasons.items():
        if getattr(args, option, DEFAULTS[option]) != DEFAULTS[option]:
            raise UsageError(f"{flag(option)} is not supported: {reason}")


_NOT_GREEDY = dict.fromkeys(
    ("sampling", "diversity_rate", "diverse_beam_groups"),
    "--exit-lossless verifies drafts of greedy search, which takes the most probable word",
)


def check_greedy(args: Any, named: Callable[[str], str] = flag) -> None:
    """Raise UsageError for options that ``--exit-lossless`` does not go with.

    Arguments are those of ``check_numbers``.
    """
    for option in ("beam", "nbest"):
        value = getattr(args, option, DEFAULTS[option])
        if value != 1:
            raise UsageError(
                f"{named(option)} is {value}, but --exit-lossless verifies drafts of one greedy "
                f"hypothesis per sentence: give {named(option)} 1"
            )
    reject_options(args, _NOT_GREEDY)


def generation_options(option: str, text: str, **defaults: Any) -> Namespace:
    """Return the generation options that ``option`` gives as a JSON object, over ``defaults``.

    Raises:
        ValueError: not a JSON object, or one with other names or with impossible values.
    """
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{option} {shortened(text)} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'{option} {text!r}: give a JSON object, {{"beam": 5}}')
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise ValueError(
            f"{option}: fairseq has no generation option {', '.join(unknown)} "
            "(names as in beam, max_len_b, no_repeat_ngram_size)"
        )
    merged = Namespace(**{**defaults, **options})
    check_search(merged, lambda name: f"{option}: {name}")
    return merged

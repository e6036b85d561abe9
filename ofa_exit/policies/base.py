"""What an exit policy is: a dataclass whose fields are its options, and a gate per model part."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, Union

from torch import Tensor

PARTS = ("image", "text", "joint", "decoder")


@dataclass
class GateInput:
    """What a gate may look at after one layer has run.

    R rows are active: one per sample in the encoder, one per hypothesis in the decoder.

    Attributes:
        previous, current: hidden states before and after the layer, [R, T, C] in the encoder and
            [R, P, C] in the decoder (P positions).
        layer: 1-based number of the layer that has just run.
        padding_mask: Bool [R, T], True on padding and on image tokens that had exited before this
            layer; None where there are none. Encoder only.
        step: Long [P], or [R, P] where rows differ: time step of each position, 0 for the first
            token. Decoder only.
        step_limit: Long [R, 1], steps that the generation of each row may take (N of MuE Eq. 11).
            Decoder only.
        memory: tensors of the policy's own, by name, whose first dimension is the active rows. The
            runtime compacts them with the rows. It clears them before each decoder step and each
            encoder pass.
        has_head: whether word scores exist after this layer. Decoder only.
        score_words: what ``scores`` calls; set by the runtime.
        learned_confidence: what ``confidence`` calls; set by the runtime.
    """

    previous: Tensor
    current: Tensor
    layer: int
    padding_mask: Optional[Tensor] = None
    step: Optional[Tensor] = None
    step_limit: Optional[Tensor] = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    score_words: Optional[Callable[[Callable[[Tensor], Tensor]], Tensor]] = None
    learned_confidence: Optional[Callable[[], Tensor]] = None

    @property
    def has_head(self) -> bool:
        return self.score_words is not None

    def scores(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``fn`` to the word scores that this layer's head gives.

        Args:
            fn: maps logits [M, V] of M rows and positions to [M]. Over a closed set of W answers
                the logits are [M, W], -inf on words that are not allowed. It is called as often as
                chunks of bounded memory need, and must not change the logits: rows that exit here
                go out with them.

        Returns:
            [R, P]: the results.

        Raises:
            RuntimeError: no head follows this layer (see ``has_head``).
        """
        if self.score_words is None:
            raise RuntimeError(f"no exit head follows layer {self.layer}: ask has_head first")
        return self.score_words(fn)

    def confidence(self) -> Tensor:
        """Return what this layer's head has learned about its own answer.

        Returns:
            [R, P], between 0 and 1: whether it is safe to exit.

        Raises:
            RuntimeError: no head with a learned confidence follows this layer.
        """
        if self.learned_confidence is None:
            raise RuntimeError(f"no head with a learned confidence follows layer {self.layer}")
        return self.learned_confidence()


GateAnswer = Union[Tensor, bool]
Gate = Callable[[GateInput], GateAnswer]
"""True where a row may exit: Bool [R] in the encoder, Bool [R, P] in the decoder.

A plain ``bool`` answers for every row at once, and then nothing is read back from the device.
"""


class OptionError(ValueError):
    """An option of a policy that makes no sense: its field's name, and what is wrong with it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem


def option(
    default: Any,
    help: str,
    *,
    at_least: Optional[float] = None,
    at_most: Optional[float] = None,
    choices: Optional[Collection[str]] = None,
    parse: Optional[Callable[[Any], Any]] = None,
    flag: Optional[str] = None,
    metavar: Optional[str] = None,
    doubts: Optional[Callable[[Any], Optional[str]]] = None,
    tries: Sequence[Any] = (),
) -> Any:
    """Declare a field of a policy, which is also the command-line flag ``--exit-NAME``.

    Args:
        default: value without the flag; ``dataclasses.MISSING`` if the flag is required.
        help: text of ``--help``.
        at_least, at_most: bounds of a number.
        choices: names that a text must be one of.
        parse: turns a text of the command line into the value. ValueError says what is wrong.
        flag: name of the flag, if not the field's.
        metavar: what stands for the value in messages, as IMAGE,TEXT,DECODER.
        doubts: says why a valid value is likely a mistake; None if it is not. Commands warn of it.
        tries: values that ``ofa-exit calibrate`` tries, the most careful first. With a later value
            no gate may answer False where it answers True with an earlier one.
    """
    metadata = {
        "help": help,
        "at_least": at_least,
        "at_most": at_most,
        "choices": choices,
        "parse": parse,
        "flag": flag,
        "metavar": metavar,
        "doubts": doubts,
        "tries": tries,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Origin:
    """What the numbers of a policy were fitted on: it serves no other checkpoint or task.

    Attributes:
        option: names the numbers in errors, as "--exit-gate gate.json".
        remedy: how to make them for another checkpoint.
        digest: changes with the numbers.
        checkpoint, task: fingerprints, as in files of ``--exit-config``.
    """

    option: str
    remedy: str
    digest: str
    checkpoint: Mapping[str, Any]
    task: Mapping[str, Any]


class ExitPolicy:
    """Decides when to exit. Subclass it as a dataclass, and register it by name.

    Override the gates of the parts whose rows may exit. A gate that is not overridden costs
    nothing. Gates see each row by itself: an answer must not depend on other rows of the batch.
    The text gate is asked once for equal texts, and again when the policy's fields change.
    """

    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}
    """``--exit-preset`` name -> kind of task (caption, answer) -> values of fields."""
    given: Collection[str] = ()
    """Fields that the user set, where the policy was built from options."""
    needs_confidence: ClassVar[bool] = False
    """Whether a gate asks for ``GateInput.confidence``, so that the heads must have learned one."""
    origin: Optional[Origin] = None
    """What the policy was fitted on, if it was."""

    def __post_init__(self) -> None:
        """Check every field against its declaration. Raises OptionError."""
        for declared in dataclasses.fields(self):  # type: ignore[arg-type]
            if declared.metadata:
                value = _checked(type(self), declared, getattr(self, declared.name))
                setattr(self, declared.name, value)

    @classmethod
    def defaults(cls, task: str) -> dict[str, Any]:
        """Return defaults of fields for a kind of task, where they differ from the declared."""
        return {}

    def check(self, model: Any) -> None:
        """Raise ValueError if a model cannot follow this policy.

        Args:
            model: the model's arguments (encoder_layers, decoder_layers, split_modalities,
                exit_layers, …), known before any weight is read.
        """

    def image_gate(self, seen: GateInput) -> GateAnswer:
        """Gate of the image pass of a split encoder: Bool [R]."""
        return False

    def text_gate(self, seen: GateInput) -> GateAnswer:
        """Gate of the text pass of a split encoder: Bool [R]."""
        return False

    def joint_gate(self, seen: GateInput) -> GateAnswer:
        """Gate of an encoder that runs image and text together: Bool [R]."""
        return False

    def decoder_gate(self, seen: GateInput) -> GateAnswer:
        """Gate of the decoder, for every hypothesis and position: Bool [R, P]."""
        return False

    def gate(self, part: str) -> Optional[Gate]:
        """Return the gate of a part (``PARTS``); None if no row ever exits there."""
        name = f"{part}_gate"
        overridden = getattr(type(self), name) is not getattr(ExitPolicy, name)
        return getattr(self, name) if overridden else None

    def select_heads(self, layers: Sequence[int]) -> Collection[int]:
        """Select which of a model's heads run whenever their layer is reached.

        Args:
            layers: decoder layers, from 1, that a head follows.

        Returns:
            Layers whose head runs, and after which ``GateInput.scores`` works. What exits there
            leaves as the head's features, and elsewhere as the backbone's state.
        """
        return layers


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def field_type(cls: type, name: str) -> Any:
    """Return the type of a policy's field; T for Optional[T]."""
    hint = _type_hints(cls)[name]
    inner = [one for one in typing.get_args(hint) if one is not type(None)]
    optional = typing.get_origin(hint) is Union and len(inner) == 1
    return inner[0] if optional else hint


def _checked(cls: type, declared: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value of a field, parsed and checked as ``option`` declares."""
    name, rules, kind = declared.name, declared.metadata, field_type(cls, declared.name)
    if value is None and declared.default is None:
        return None
    if rules.get("parse") is not None:
        try:
            return rules["parse"](value)
        except (TypeError, ValueError) as error:
            raise OptionError(name, str(error)) from None
    if rules.get("choices") is not None and value not in rules["choices"]:
        raise OptionError(name, f"{value!r} is none of {', '.join(rules['choices'])}")
    if kind is bool:
        return _switch(name, value)
    if kind in (int, float):
        return _number(name, kind, value, rules.get("at_least"), rules.get("at_most"))
    return value


def _switch(name: str, value: Any) -> bool:
    known = {"true": True, "false": False}
    value = known.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise OptionError(name, f"must be true or false, got {value!r}")
    return value


def _number(
    name: str, kind: type, value: Any, at_least: Optional[float], at_most: Optional[float]
) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OptionError(name, f"must be a number, got {value!r}")
    low = at_least is not None and value < at_least
    high = at_most is not None and value > at_most
    if not math.isfinite(value) or low or high:
        limits = [f"at least {at_least:g}"] if at_least is not None else []
        limits += [f"at most {at_most:g}"] if at_most is not None else []
        needed = f" of {' and '.join(limits)}" if limits else ""
        raise OptionError(name, f"must be a finite number{needed}, got {value}")
    if kind is int and value != int(value):
        raise OptionError(name, f"must be a whole number, got {value!r}")
    return kind(value)


def per_row(values: Tensor, rows: int) -> Tensor:
    """Expand values [P] or [R, P] to [R, P], as ``GateInput.memory`` keeps them."""
    return values if values.dim() == 2 and values.size(0) == rows else values.expand(rows, -1)

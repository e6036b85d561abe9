"""Sums over a run, which its report shows and which shards add up."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from ofa_exit.evaluation.efficiency.depth import (
    SampleDepth,
    expected_time_reduction,
    mean_layers,
    parameters_used,
    without_text,
)
from ofa_exit.evaluation.efficiency.flops import flop_reduction
from ofa_exit.runtime.flops import PARTS

GIGA = 1e9
# A part of what is counted by the other.
_PARTS_OF = (
    *((part, "sentences") for part in ("images", "texts", "counted")),
    *(("words_by_head", "words_run"), ("accepted", "drafted")),
)
# Heads may cost more than the layers that they save.
_SIGNED = ("expected_time_reduction", "expected_time_without_text")
_LARGEST = 1e30
_OF_THE_MODEL = ("encoder_layers", "decoder_layers", "exits", "head_layers", "reference_layers")


@dataclass
class RunTotals:
    """Sums over the sentences of a run, or of one of its shards.

    Attributes:
        executed, full: FLOPs by part (``runtime.flops.PARTS``), position biases left out.
        biases: FLOPs of each shape of biases; a shape is made once, however many shards met it.
    """

    encoder_layers: int
    decoder_layers: int
    exits: list[int]  # decoder layers whose heads are used
    head_layers: float  # weights per head / weights of a decoder layer; see of()
    reference_layers: list[int] | None  # N_E and N_D of Eq. 14; None: the model's
    sentences: int
    words: int  # of the best hypotheses
    images: int  # sentences with an image
    image_layers: int
    texts: int  # sentences with text
    text_layers: int
    decoder_depth: float  # of each sentence's mean over its words
    expected_time_reduction: float
    expected_time_without_text: float  # the same without the layers of texts
    words_run: int  # words that a layer ran for
    parameters: int  # BLIPEE's i + k, summed over these words
    words_by_head: int  # of these, words that exited through a head
    seconds: float
    counted: int  # sentences whose FLOPs are counted
    executed: dict[str, int]
    full: dict[str, int]
    biases: dict[str, int]
    prompt: str | None = None  # the key of the text, if a text pass had one for all sentences
    drafted: int = 0  # tokens that were drafted and verified, with --exit-lossless
    accepted: int = 0  # of these, tokens that the search chose
    rounds: int = 0  # passes over a row that verified drafts

    @classmethod
    def of(
        cls,
        samples: Sequence[SampleDepth],
        encoder_layers: int,
        decoder_layers: int,
        exits: Collection[int],
        head_depth: int,
        head_layers: float = 0.0,
        reference_layers: tuple[int, int] | None = None,
        **rest: Any,
    ) -> "RunTotals":
        """Sum the depths of ``samples``.

        Args:
            exits: decoder layers whose heads are used.
            head_depth: decoder layers that a head has.
            head_layers: weights per head divided by the weights of a decoder layer; 0 if the head
                is made of decoder layers.
            reference_layers: N_E and N_D of Eq. 14; None: the model's.
            rest: seconds, counted, executed, full, biases, prompt, and those of drafts.

        Raises:
            ValueError: samples that cannot be, see ``expected_time_reduction``.
        """
        used = [parameters_used(sample, exits, head_depth) for sample in samples]
        layers = reference_layers or (encoder_layers, decoder_layers)
        return cls(
            encoder_layers,
            decoder_layers,
            sorted(exits),
            head_layers,
            list(reference_layers) if reference_layers else None,
            sentences=len(samples),
            words=sum(len(sample.word_layers) for sample in samples),
            images=sum(sample.image_layers > 0 for sample in samples),
            image_layers=sum(sample.image_layers for sample in samples),
            texts=sum(sample.text_layers > 0 for sample in samples),
            text_layers=sum(sample.text_layers for sample in samples),
            decoder_depth=sum(mean_layers([sample]).decoder for sample in samples),
            expected_time_reduction=sum(
                expected_time_reduction([sample], *layers, exits, head_depth) for sample in samples
            ),
            expected_time_without_text=sum(
                expected_time_reduction([without_text(sample)], *layers, exits, head_depth)
                for sample in samples
            ),
            words_run=sum(map(len, used)),
            parameters=sum(map(sum, used)),
            words_by_head=sum(
                layers in exits for sample in samples for layers in sample.word_layers
            ),
            **rest,
        )

    @classmethod
    def from_dict(cls, values: Any) -> "RunTotals":
        """Return what ``dataclasses.asdict`` made; raise ValueError for anything else."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise ValueError("the totals were written by another version: generate the shard again")
        for field in dataclasses.fields(cls):
            if not _is_possible(field, values[field.name]):
                raise ValueError(
                    f"{field.name} is {str(values[field.name])[:40]}, which cannot be: generate "
                    "the shard again"
                )
        for part, whole in _PARTS_OF:
            if values[part] > values[whole]:
                raise ValueError(
                    f"{part} is {values[part]} of {values[whole]} {whole}: generate the shard again"
                )
        return cls(**values)

    @classmethod
    def merged(cls, parts: Sequence["RunTotals"]) -> "RunTotals":
        """Return the totals of all shards; raise ValueError if their models differ."""
        first, *others = parts
        for other in others:
            for name in _OF_THE_MODEL:
                if getattr(other, name) != getattr(first, name):
                    raise ValueError(
                        f"{name} {getattr(first, name)} and {getattr(other, name)}: the shards "
                        "come from different models or have different --reference-layers"
                    )
        biases: dict[str, int] = {}
        for part in parts:
            for shape, cost in part.biases.items():
                if biases.setdefault(shape, cost) != cost:
                    raise ValueError("position biases differ: the shards' models differ")
        prompts = {part.prompt for part in parts if part.sentences}
        prompt = prompts.pop() if len(prompts) == 1 else None
        values: dict[str, Any] = {"biases": biases, "prompt": prompt}
        for name in _OF_THE_MODEL:
            values[name] = getattr(first, name)
        for field in dataclasses.fields(cls):
            if field.name in ("executed", "full"):
                operations = [getattr(part, field.name) for part in parts]
                values[field.name] = {
                    name: sum(part[name] for part in operations) for name in PARTS
                }
            elif field.name not in values:
                values[field.name] = sum(getattr(part, field.name) for part in parts)
        return cls(**values)

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the whole run; None where there is nothing to count.

        Layers and expected_time_reduction are those of ``depth``; reference_layers is there if they
        are another model's. expected_time_reduction_without_prompt is there if a text pass had the
        same text for all sentences: Eq. 14 over the layers of the images alone. flop_reduction is
        1 - executed / full FLOPs, each summed over the run (0 without a trace).
        seconds_per_sentence is measured and depends on the machine and the batch size.

        With drafts there are drafted, accepted and accepted_share, the share of the drafted tokens
        that the search chose, and words_per_round, the mean number of words per full-depth pass.

        parameter_speedup is BLIPEE's N / mean(i + k), without heads k = 0. A head that is no
        transformer layer has k = 0 there, however many weights it has. For such heads
        parameter_speedup_with_heads has k = weights of a head / weights of a decoder layer.
        """
        count, biases = self.sentences, {"biases": sum(self.biases.values())}
        parts, all_parts = {**self.executed, **biases}, {**self.full, **biases}
        executed, full = sum(parts.values()), sum(all_parts.values())
        per_sentence = GIGA * self.counted
        reduction = flop_reduction(parts, all_parts) if self.counted else 0.0
        return {
            "sentences": count,
            "words": self.words,
            "image_layers": self.image_layers / self.images if self.images else None,
            "text_layers": self.text_layers / self.texts if self.texts else None,
            "decoder_layers": self.decoder_depth / count if count else None,
            "encoder_layers_full": self.encoder_layers,
            "decoder_layers_full": self.decoder_layers,
            "expected_time_reduction": self.expected_time_reduction / count if count else None,
            **self._without_prompt(),
            **({"reference_layers": self._reference} if self.reference_layers else {}),
            "flop_reduction": reduction if count else None,
            "parameter_speedup": self._parameter_speedup(0),
            **self._speedup_with_heads(),
            **self._drafts(),
            "gflops_per_sentence": executed / per_sentence if self.counted else None,
            "gflops_full_per_sentence": full / per_sentence if self.counted else None,
            "seconds_per_sentence": self.seconds / count if count else None,
            "seconds": self.seconds,
        }

    @property
    def _reference(self) -> str:
        """Return the reference's layers as "6+6"."""
        return "+".join(map(str, self.reference_layers or ()))

    def _parameter_speedup(self, head_layers: float) -> float | None:
        """Return N / mean(i + k); ``head_layers`` is added to k of every head."""
        used = self.parameters + head_layers * self.words_by_head
        return self.decoder_layers * self.words_run / used if used else None

    def _drafts(self) -> dict[str, Any]:
        if not self.rounds:
            return {}
        return {
            "drafted": self.drafted,
            "accepted": self.accepted,
            "accepted_share": self.accepted / self.drafted if self.drafted else None,
            "words_per_round": (self.accepted + self.rounds) / self.rounds,
        }

    def _speedup_with_heads(self) -> dict[str, float | None]:
        if not (self.exits and self.head_layers):
            return {}
        return {"parameter_speedup_with_heads": self._parameter_speedup(self.head_layers)}

    def _without_prompt(self) -> dict[str, float]:
        if self.prompt is None or not self.sentences:
            return {}
        value = self.expected_time_without_text / self.sentences
        return {"expected_time_reduction_without_prompt": value}

    def table(self) -> str:
        """Return the summary as a table."""
        values = self.summary()
        if not values["sentences"]:
            return "exits: no sentence was generated, nothing to report"
        encoder, decoder = values["encoder_layers_full"], values["decoder_layers_full"]
        rows = [
            ("sentences", f"{values['sentences']}"),
            ("words of the best hypotheses", f"{values['words']}"),
        ]
        for name, total in (("image", encoder), ("text", encoder), ("decoder", decoder)):
            layers = values[f"{name}_layers"]
            shown = "none in this run" if layers is None else f"{layers:.2f} of {total}"
            rows.append((f"mean {name} layers", shown))
        name = "expected_time_reduction"
        if self.reference_layers:
            name += f" against {self._reference} layers"
        rows.append((name, f"{100 * (values['expected_time_reduction'] or 0):.1f} %"))
        if "expected_time_reduction_without_prompt" in values:
            shown = f"{100 * values['expected_time_reduction_without_prompt']:.1f} %"
            rows.append(("without the constant prompt", shown))
        reduction = f"{100 * (values['flop_reduction'] or 0):.1f} %"
        if values["gflops_per_sentence"] is not None:
            reduction += (
                f" ({values['gflops_per_sentence']:.3f} GFLOPs per sentence, "
                f"{values['gflops_full_per_sentence']:.3f} at full depth)"
            )
        rows.append(("flop_reduction", reduction))
        if self.exits:
            exits = ",".join(map(str, self.exits))
            shown = f"{values['parameter_speedup']:.2f} x (heads after layers {exits})"
            rows.append(("parameter_speedup", shown))
        if "parameter_speedup_with_heads" in values:
            shown = (
                f"{values['parameter_speedup_with_heads']:.2f} x "
                f"(a head has the weights of {self.head_layers:.1f} decoder layers)"
            )
            rows.append(("parameter_speedup_with_heads", shown))
        if self.rounds:
            share = f"{100 * (values['accepted_share'] or 0):.1f} % of {self.drafted}"
            rows.append(("drafts accepted", share))
            shown = f"{values['words_per_round']:.2f} ({self.rounds} rounds)"
            rows.append(("words per round of drafts", shown))
        rows.append(("measured time per sentence", f"{values['seconds_per_sentence']:.4f} s"))
        return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _is_possible(field: Any, value: Any) -> bool:
    """Return whether a value read from a report has the kind of its field and makes sense."""
    if field.name == "prompt":
        return value is None or isinstance(value, str)
    if field.name == "reference_layers" and value is None:
        return True
    numbers: list[Any] = [value]
    kind: Any = int
    if field.name in ("exits", "reference_layers"):
        if not isinstance(value, list):
            return False
        numbers = value
    elif field.name in ("executed", "full", "biases"):
        if not isinstance(value, Mapping) or (field.name != "biases" and set(value) != set(PARTS)):
            return False
        numbers = list(value.values())
        kind = (int, float)
    elif field.type is float:
        kind = (int, float)
    least = -_LARGEST if field.name in _SIGNED else 0
    return all(
        isinstance(number, kind) and not isinstance(number, bool)
        and least <= number < _LARGEST
        for number in numbers
    )  # fmt: skip

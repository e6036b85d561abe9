"""Cases: rows with the answers of several methods, each word with its exit layer."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ofa_exit.evaluation.efficiency.depth import SampleDepth, expected_time_reduction
from ofa_exit.regular_files import regular_file

EARLY, MIDDLE, LATE = (255, 234, 70), (124, 123, 120), (0, 32, 77)
"""RGB of matplotlib's cividis: its lightness falls alike for every kind of colour vision."""

Trace = dict[str, dict[str, Any]]
"""Records of an --exit-trace file by the row's name, see ``efficiency.report``."""


@dataclass(frozen=True)
class Word:
    """A token of an answer.

    Attributes:
        text: as printed, with the space before it; empty for the end of the sentence.
        layer: decoder layers used; 0 where no choice was left, so that none ran.
        confidence: the largest probability where it left; None if not measured.
        cosine: of the states before and after its last layer; None if not measured.
    """

    text: str
    layer: int
    confidence: float | None = None
    cosine: float | None = None

    @property
    def hover(self) -> str:
        """What to show about the word: layer, confidence, cosine."""
        parts = [f"exit after layer {self.layer}" if self.layer else "no layer: no other choice"]
        if not self.text:
            parts.insert(0, "end of sentence")
        if self.confidence is not None:
            parts.append(f"confidence {self.confidence:.2f}")
        if self.cosine is not None:
            parts.append(f"cosine {self.cosine:.3f}")
        return ", ".join(parts)


def without_free_end(words: list[Word]) -> list[Word]:
    """Return the words without the end of an answer that could not go on: it ran no layer."""
    ends_free = len(words) > 1 and not words[-1].text and not words[-1].layer
    return words[:-1] if ends_free else words


@dataclass(frozen=True)
class Answer:
    """What one method generated; words are those of the best hypothesis."""

    method: str
    words: Sequence[Word]
    image_layers: int
    text_layers: int

    @property
    def layers(self) -> str:
        """The layers used, in words."""
        used = [word.layer for word in self.words if word.layer]
        decoder = sum(used) / len(used) if used else 0
        image = f"image {self.image_layers}, " if self.image_layers else ""
        return f"{image}text {self.text_layers}, decoder {decoder:.1f}"


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        image: PNG bytes; None for a row without an image.
        source: the text that the model is asked; may be empty.
    """

    name: str
    image: bytes | None
    source: str
    references: Sequence[str]
    answers: Sequence[Answer]


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Return the records of an --exit-trace file. Raises ValueError with file, line and remedy."""
    records: Trace = {}
    with open(regular_file(path), encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{os.fspath(path)}, line {number}"
            try:
                record = json.loads(line)
                name, best = str(record["id"]), record["hypotheses"][0]
                whole = len(best["tokens"]) == len(best["layers"])
                whole = whole and {"image_layers", "text_layers"} <= record.keys()
            except (ValueError, LookupError, TypeError):
                whole, name = False, ""
            if not whole:
                raise ValueError(f"{where}: no record of --exit-trace. Generate it again")
            if name in records:
                raise ValueError(f"{where}: the row {name} comes twice. Give a trace of one split")
            records[name] = record
    if not records:
        raise ValueError(f"{os.fspath(path)} is empty: generate it again with --exit-trace")
    return records


def depth_of(traces: Mapping[str, Trace]) -> tuple[int, int]:
    """Return the largest numbers of encoder and decoder layers in the best hypotheses."""
    samples = [_depth(record) for trace in traces.values() for record in trace.values()]
    encoder = max(max(sample.image_layers, sample.text_layers) for sample in samples)
    return encoder, max(max(sample.word_layers, default=0) for sample in samples)


def choose_rows(
    traces: Mapping[str, Trace],
    names: Sequence[str] = (),
    count: int = 8,
    largest_saving: bool = False,
) -> list[str]:
    """Return the names of the rows to show.

    Args:
        traces: of each method.
        names: rows to show, in this order; none = ``count`` rows that all traces have.
        largest_saving: take those whose expected time falls most (Eq. 14, mean over the methods),
            instead of the first.

    Raises:
        ValueError: a trace lacks a row of ``names``, or there is no row in all traces.
    """
    for method, trace in traces.items():
        for name in names:
            if name not in trace:
                raise ValueError(f"the trace of {method} has no row {name}: name others by --rows")
    if names:
        return list(names)
    first, *others = traces.values()
    rows = [name for name in first if all(name in other for other in others)]
    if not rows:
        raise ValueError(f"no row is in all traces, of {', '.join(traces)}: trace the same split")
    if largest_saving:
        encoder, decoder = depth_of(traces)

        def saving(name: str) -> float:
            samples = [_depth(trace[name]) for trace in traces.values()]
            return expected_time_reduction(samples, encoder, decoder)

        rows.sort(key=saving, reverse=True)
    return rows[:count]


def _depth(record: Mapping[str, Any]) -> SampleDepth:
    layers = tuple(record["hypotheses"][0]["layers"])
    return SampleDepth(record["image_layers"], record["text_layers"], layers)


def layer_colours(layer: int, depth: int) -> tuple[str, str]:
    """Return background and text colour of a word, light for early layers and dark for late.

    Layer 0, where none ran, is white.
    """
    if not layer:
        return "#ffffff", "#000000"
    place = (layer - 1) / max(1, depth - 1)
    start, end, share = (EARLY, MIDDLE, 2 * place) if place < 0.5 else (MIDDLE, LATE, 2 * place - 1)
    rgb = [round(a + (b - a) * share) for a, b in zip(start, end)]
    lightness = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    return "#{:02x}{:02x}{:02x}".format(*rgb), "#000000" if lightness > 130 else "#ffffff"

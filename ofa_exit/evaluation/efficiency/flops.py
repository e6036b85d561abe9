"""FLOPs of a generation, as executed and as full depth would have cost.

Modules state the cost of a unit in ``flops``, next to their ``forward``. The trace records how many
units ran. This file adds. See ``runtime.flops`` for what is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ofa_exit.runtime.flops import PARTS, add_work
from ofa_exit.runtime.trace import ExitTrace


@dataclass(frozen=True)
class BatchFlops:
    """FLOPs of one batch, by part (PARTS): as executed, and with every layer executed."""

    executed: dict[str, int]
    full: dict[str, int]


def bias_costs(model: Any, image: int, text: int, positions: int) -> dict[str, int]:
    """Return the FLOPs of the position biases of a batch, by shape.

    They depend on no content, so each shape is computed once for all batches.

    Args:
        image, text: tokens of the source's parts.
        positions: target positions that the decoder's biases cover.
    """
    decoder = model.decoder
    return {
        **model.encoder.bias_flops(image, text),
        f"self {positions}": decoder.self_bias_flops(positions),
        f"cross {image} {text} {positions}": decoder.cross_bias_flops(positions, image + text),
    }


def batch_flops(trace: ExitTrace) -> BatchFlops:
    """Return the FLOPs of generating for one batch of sentences, position biases left out."""
    executed, full = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    sources = trace.source_tokens.tolist()
    add_work(executed, trace.work, sources)
    add_work(full, trace.full_work, sources)
    for step in trace.steps:
        present = _sources_of(step.sentence.tolist(), sources)
        add_work(executed, step.work, present)
        add_work(full, step.full_work, present)
    return BatchFlops(executed, full)


def flop_reduction(executed: dict[str, int], full: dict[str, int]) -> float:
    """Return 1 - executed / full FLOPs, stem and scoring of words included.

    Eq. 14 of MuE weighted by real cost.
    """
    return 1 - sum(executed.values()) / sum(full.values())


def _sources_of(sentence_of_row: list[int], sources: Sequence[int]) -> list[int]:
    """Return the source tokens of each sentence present, from the sentence of each row."""
    return [sources[number] for number in dict.fromkeys(sentence_of_row)]

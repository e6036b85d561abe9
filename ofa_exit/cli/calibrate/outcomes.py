"""What a setting did to each sentence of a batch, and how few settings have to be run to know."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ofa_exit.cli.sweep_setting import Setting
from ofa_exit.evaluation.efficiency.depth import SampleDepth, expected_time_reduction
from ofa_exit.evaluation.efficiency.flops import batch_flops

Place = tuple[int, ...]
"""Numbers of the values along the axes of a grid."""


@dataclass(frozen=True)
class Outcome:
    """A sentence under a setting.

    Attributes:
        text: best hypothesis.
        costs: see ``Sentence``.
        path: the layers that every token of every hypothesis used. Two settings with the same path
            computed the same.
    """

    text: str
    costs: dict[str, float]
    path: Any


def outcomes_of(setting: Setting, sample: dict[str, Any], with_paths: bool) -> list[Outcome]:
    """Generate a batch; return the outcome of each sentence. Time and FLOPs are equal shares."""
    hyps, tokens, seconds = setting.generate(sample)
    model, task = setting.model, setting.task
    (trace,) = task.traces(setting.generator, [model])
    count, flops = len(tokens), sum(batch_flops(trace).executed.values())
    depths = trace.depths([[beam[0]] for beam in tokens])
    image, text = trace.image_layers.tolist(), trace.text_layers.tolist()
    pad = task.dictionary.pad()
    paths = _paths(trace, count, pad) if with_paths else [None] * count
    decoder = model.decoder
    exits = decoder.active_heads(setting.setting.policy)
    layers = len(model.encoder.layers), len(decoder.layers)
    found = []
    for number in range(count):
        depth = SampleDepth(image[number], text[number], tuple(depths[number][0]))
        saved = expected_time_reduction([depth], *layers, exits, decoder.exit_heads.depth)
        costs = {"time": seconds / count, "flops": flops / count, "layers": 1 - saved}
        best = task.text(hyps[number][0]["tokens"])
        found.append(Outcome(best, costs, (image[number], text[number], paths[number])))
    return found


def _paths(trace: Any, sentences: int, pad: int) -> list[list[tuple[int, ...]]]:
    """Return the layers of all tokens of each sentence's rows, step by step, without padding."""
    paths: list[list[tuple[int, ...]]] = [[] for _ in range(sentences)]
    for step in trace.steps:
        used = step.layers_used
        tokens = step.tokens[:, -used.size(1) :]
        rows = zip(step.sentence.tolist(), tokens.tolist(), used.tolist())
        for sentence, row_tokens, row_used in rows:
            pairs = zip(row_tokens, row_used)
            paths[sentence].append(tuple(v for pair in pairs if pair[0] != pad for v in pair))
    return paths


def fill_grid(
    shape: Sequence[int], rows: Sequence[int], run: Callable[[Place, list[int]], list[Outcome]]
) -> dict[int, dict[Place, Outcome]]:
    """Return the outcome of every row at every place of a grid; run as few places as possible.

    A later value along an axis never exits later. So if the two ends of a box have the same path,
    all that is between them has it, too: at each layer the careful end exits where the other one
    does, and before it neither does. By induction over layers and tokens the states are the same.

    Args:
        shape: numbers of values along the axes, the most careful value first.
        run: generates rows at a place.
    """
    found: dict[int, dict[Place, Outcome]] = {row: {} for row in rows}

    def ensure(place: Place, some: list[int]) -> None:
        new = [row for row in some if place not in found[row]]
        for row, outcome in zip(new, run(place, new) if new else []):
            found[row][place] = outcome

    def fill(low: Place, high: Place, some: list[int]) -> None:
        ensure(low, some)
        ensure(high, some)
        rest = []
        for row in some:
            careful, cheap = found[row][low], found[row][high]
            if careful.path != cheap.path:
                rest.append(row)
                continue
            for place in _box(low, high):
                # Heads that a word passes cost most at the cheap end.
                found[row].setdefault(place, cheap)
        if not rest:
            return
        axis = max(range(len(low)), key=lambda number: high[number] - low[number])
        middle = (low[axis] + high[axis]) // 2
        fill(low, (*high[:axis], middle, *high[axis + 1 :]), rest)
        fill((*low[:axis], middle + 1, *low[axis + 1 :]), high, rest)

    if rows:
        fill((0,) * len(shape), tuple(size - 1 for size in shape), list(rows))
    return found


def _box(low: Place, high: Place) -> Iterator[Place]:
    return itertools.product(*(range(first, last + 1) for first, last in zip(low, high)))


def select_rows(sample: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Return some rows of a batch, as ``collate`` would make them, with the batch's padding."""
    size = sample["nsentences"]
    if rows == [*range(size)]:
        return sample
    net_input = {name: _select(value, rows, size) for name, value in sample["net_input"].items()}
    images = sample["net_input"].get("image_rows")
    if images is not None:  # sentences share images
        kept, own = images[rows].unique(return_inverse=True)
        net_input["patch_images"] = sample["net_input"]["patch_images"][kept]
        net_input["image_rows"] = own
        if len(kept) == len(rows):
            net_input["patch_images"] = net_input["patch_images"][own]
            del net_input["image_rows"]
    chosen: dict[str, Any] = {"net_input": net_input, "nsentences": len(rows)}
    rest = {name: _select(value, rows, size) for name, value in sample.items()}
    return {**rest, **chosen}


def _select(value: Any, rows: list[int], size: int) -> Any:
    """Return ``rows`` of a list or tensor of ``size`` rows; all of anything else."""
    if isinstance(value, list):
        return [value[row] for row in rows]
    is_per_row = torch.is_tensor(value) and value.dim() > 0 and len(value) == size
    return value[rows] if is_per_row else value

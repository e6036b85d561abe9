"""Time per part of the model: methods are wrapped in timers for some extra rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.setting import Setting
from benchmarks.timing import CLOCKS, schedule_rounds, synchronise

REST = "beam search and Python"
PARTS = (
    "stem", "image layers", "text layers", "position biases", "cross K/V", "decoder layers",
    "words", "reordering", REST,
)  # fmt: skip
ENCODER_LAYERS = "encoder layers"  # image or text, by the number of tokens

# Methods of each part, as paths from the model; * stands for every element. The time inside a
# method counts for the innermost part. The time outside all methods is REST.
_SHARED = {
    "stem": ("encoder.embed_image",),
    ENCODER_LAYERS: ("encoder.layers.*.forward",),
    "decoder layers": ("decoder.layers.*.forward",),
    "words": ("decoder.output_layer",),
    "reordering": ("encoder.reorder_encoder_out", "decoder.reorder_incremental_state_scripting"),
}
METHODS = {
    "ours": {
        **_SHARED,
        "decoder layers": ("decoder.layers.*.forward", "decoder.layers.*.self_kv"),
        "position biases": ("encoder._biases", "decoder.biases"),
        "cross K/V": ("decoder.cross_kv",),
    },
    "reference": {
        **_SHARED,
        "position biases": (
            "encoder.absolute_bias",
            "encoder.layer_bias",
            "decoder.absolute_biases",
            "decoder.layer_bias",
        ),
        "cross K/V": ("decoder.layers.*.cross_kv",),
    },
}


class PartTimer:
    """Sum seconds by part; a part inside another stops the clock of the outer one."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self._clock = setting, CLOCKS[setting.clock]
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        """Add the time since the last switch to the part that is running."""
        synchronise(self.setting.device)
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        self._switch()
        self._open.append(part)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def wrapped(self, part: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            name = part
            if part == ENCODER_LAYERS:
                tokens = arguments[0].size(1)
                name = "text layers" if tokens == self.setting.text_length else "image layers"
            with self.inside(name):
                return plain(*arguments, **options)

        return timed


def find_methods(model: Any, path: str) -> Iterator[tuple[Any, str]]:
    """Yield (object, name) of every method of a path.

    Raises:
        AttributeError: if there is no such method.
    """
    owners = [model]
    *steps, name = path.split(".")
    for step in steps:
        owners = [
            inner
            for owner in owners
            for inner in (list(owner) if step == "*" else [getattr(owner, step)])
        ]
    for owner in owners:
        getattr(owner, name)
        yield owner, name


@contextmanager
def timers(model: Any, kind: str, timer: PartTimer) -> Iterator[None]:
    """Wrap the methods of a model ("ours" or "reference") while in the context."""
    wrapped: list[tuple[Any, str]] = []
    try:
        for part, paths in METHODS[kind].items():
            for path in paths:
                for owner, name in find_methods(model, path):
                    # An attribute of the instance hides the method of its class.
                    setattr(owner, name, timer.wrapped(part, getattr(owner, name)))
                    wrapped.append((owner, name))
        yield
    finally:
        for owner, name in wrapped:
            delattr(owner, name)


def measure_parts(
    runs: Mapping[str, tuple[Callable[[], Any], Any, str]], rounds: int, setting: Setting
) -> dict[str, dict[str, float]]:
    """Return the seconds of each part of every run: medians over ``rounds`` interleaved rounds.

    On CUDA every part waits for the device at its end, so the sum exceeds the time of a plain run.

    Args:
        runs: for each name what to call, its model, and "ours" or "reference".
    """
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _, name in schedule_rounds(list(runs), rounds, 0, f"parts, {setting}"):
        run, model, kind = runs[name]
        timer = PartTimer(setting)
        with timers(model, kind, timer), timer.inside(REST):
            run()
        measured[name].append(timer.seconds)
    return {
        name: {part: statistics.median(seconds[part] for seconds in by_round) for part in PARTS}
        for name, by_round in measured.items()
    }

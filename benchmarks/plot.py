"""Pictures of a run: time by part, or time against what grows."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from benchmarks.parts import PARTS
from benchmarks.report import Result

GROWING = {"beam": "beam", "batch": "batch_size", "image": "image_size"}
LABELS = {"beam": "beam", "batch": "batch size", "image": "image size (pixels)"}


def draw(results: Sequence[Result], growth: Optional[str], out: Path, note: str) -> None:
    """Writes OUT.png and OUT.svg; ``note`` goes below, with what the numbers belong to."""
    # fairseq's imports open the root logger, to which matplotlib tells its search for fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if growth:
        figure, axes = pyplot.subplots(figsize=(8, 5))
        _lines(axes, results, growth)
    else:
        settings = list(dict.fromkeys(result.setting for result in results))
        figure, grid = pyplot.subplots(
            len(settings), figsize=(9, 1.2 + 2.8 * len(settings)), squeeze=False
        )
        for axes, setting in zip(grid[:, 0], settings):
            _bars(axes, [result for result in results if result.setting == setting])
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="upper center", ncol=5, fontsize=8, frameon=False)
    figure.text(0.01, 0.005, note, fontsize=6, color="#555555", wrap=True)
    figure.tight_layout(rect=(0, 0.04, 1, 1 if growth else 1 - 0.5 / figure.get_figheight()))
    for kind in ("png", "svg"):
        figure.savefig(out.with_name(f"{out.name}.{kind}"), dpi=150)
    pyplot.close(figure)


def _lines(axes: Any, results: Sequence[Result], growth: str) -> None:
    for variant in dict.fromkeys(result.variant for result in results):
        own = [result for result in results if result.variant == variant]
        places = [getattr(result.setting, GROWING[growth]) for result in own]
        axes.plot(places, [statistics.median(r.seconds) for r in own], marker="o", label=variant)
    axes.set(xlabel=LABELS[growth], ylabel="seconds a batch (median)", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)


def _bars(axes: Any, results: Sequence[Result]) -> None:
    """A bar a variant: its median time, divided as the rounds with timers were."""
    names = [result.variant for result in results]
    totals = [statistics.median(result.seconds) for result in results]
    if any(result.parts for result in results):
        left = [0.0] * len(results)
        for part in PARTS:
            widths = [
                total * result.parts[part] / sum(result.parts.values()) if result.parts else 0.0
                for result, total in zip(results, totals)
            ]
            axes.barh(names, widths, left=left, label=part)
            left = [start + width for start, width in zip(left, widths)]
        whole = [0.0 if result.parts else total for result, total in zip(results, totals)]
        axes.barh(names, whole, color="#bbbbbb", label="undivided")
    else:
        axes.barh(names, totals, color="#888888")
    setting = results[0].setting
    axes.invert_yaxis()
    axes.set(xlabel="seconds a batch (median)")
    axes.set_title(f"batch {setting.batch_size}, beam {setting.beam}", fontsize=10)

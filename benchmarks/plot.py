"""Figures of a run: time by part, or time against a growing size."""

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
    """Write OUT.png and OUT.svg, with ``note`` (the setting) below the figure."""
    # fairseq configures the root logger, and matplotlib would log its search for fonts there.
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
        sizes = [getattr(result.setting, GROWING[growth]) for result in own]
        axes.plot(sizes, [statistics.median(r.seconds) for r in own], marker="o", label=variant)
    axes.set(xlabel=LABELS[growth], ylabel="seconds per batch (median)", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)


def _bars(axes: Any, results: Sequence[Result]) -> None:
    """Draw one bar per variant: its median time, divided by the parts' shares."""
    names = [result.variant for result in results]
    totals = [statistics.median(result.seconds) for result in results]
    if any(result.parts for result in results):
        left = [0.0] * len(results)
        for part in PARTS:
            # Timers slow a run down: only the shares of its parts are used.
            widths = [
                total * result.parts[part] / sum(result.parts.values()) if result.parts else 0.0
                for result, total in zip(results, totals)
            ]
            axes.barh(names, widths, left=left, label=part)
            left = [start + width for start, width in zip(left, widths)]
        undivided = [0.0 if result.parts else total for result, total in zip(results, totals)]
        axes.barh(names, undivided, color="#bbbbbb", label="undivided")
    else:
        axes.barh(names, totals, color="#888888")
    setting = results[0].setting
    axes.invert_yaxis()
    axes.set(xlabel="seconds per batch (median)")
    axes.set_title(f"batch {setting.batch_size}, beam {setting.beam}", fontsize=10)

"""How alike the states of consecutive layers are, and all layers to the last (MuE Figure 3)."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ofa_exit.evaluation.figures.plots import new_figure, run_style, save_figure

PARTS = ("image", "text", "joint", "decoder")
CONSECUTIVE, LAST = "consecutive layers", "layer and last layer"


@dataclass(frozen=True)
class Saturation:
    """The cosines of a layer over the samples (encoder) or words (decoder) of a data set.

    Attributes:
        part: one of ``PARTS``; joint is an encoder that runs image and text together.
        measure: CONSECUTIVE, of the states before and after the layer, or LAST, of the states after
            it and after the last layer.
    """

    checkpoint: str
    part: str
    measure: str
    layer: int
    mean: float
    quartile_1: float
    median: float
    quartile_3: float
    count: int


Cosines = Mapping[tuple[str, str, int], Sequence[np.ndarray]]
"""(part, measure, layer from 1) -> cosines, in pieces [M] of any length."""


def summarise(checkpoint: str, cosines: Cosines) -> list[Saturation]:
    """Return the mean and the quartiles of every part, measure and layer."""
    rows = []
    for (part, measure, layer), pieces in cosines.items():
        values = np.concatenate(pieces).astype(np.float64)
        if len(values):
            first, median, third = map(float, np.quantile(values, (0.25, 0.5, 0.75)))
            mean, count = float(values.mean()), len(values)
            rows.append(
                Saturation(checkpoint, part, measure, layer, mean, first, median, third, count)
            )
    return rows


def write_saturation(rows: Sequence[Saturation], path: str | os.PathLike[str]) -> Path:
    """Write the rows as CSV, numbers with six digits. Return the path."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Saturation)])
        writer.writeheader()
        for row in rows:
            line = asdict(row).items()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line})
    return Path(path)


def plot_saturation(rows: Sequence[Saturation], out: str | os.PathLike[str]) -> list[Path]:
    """Draw OUT.png and OUT.svg: a column per part, a row per measure, a line per checkpoint.

    A line is the mean, its band reaches from the first to the third quartile. Return the paths.
    Raises ImportError if matplotlib is missing.
    """
    return save_figure(_figure(rows), out)


def _figure(rows: Sequence[Saturation]) -> Any:
    parts = [part for part in PARTS if any(row.part == part for row in rows)]
    names = dict.fromkeys(row.checkpoint for row in rows)
    styles = {name: run_style(number) for number, name in enumerate(names)}
    figure = new_figure(2.6 * len(parts) + 2.2, 5.4)
    axes = figure.subplots(2, len(parts), sharey="row", squeeze=False)
    lines: dict[str, Any] = {}
    for line, measure in enumerate((CONSECUTIVE, LAST)):
        for axis, part in zip(axes[line], parts):
            for name, style in styles.items():
                own = [
                    r for r in rows if (r.checkpoint, r.part, r.measure) == (name, part, measure)
                ]
                if own:
                    lines[name] = _draw(axis, own, style)
            axis.set_title(part if line == 0 else "")
            axis.set_xlabel("layer")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(True, alpha=0.3)
        axes[line][0].set_ylabel(f"cosine, {measure}")
    figure.legend([lines[name] for name in styles], list(styles), loc="outside right center")
    return figure


def _draw(axis: Any, rows: Sequence[Saturation], style: Mapping[str, str]) -> Any:
    """Draw the layers of one checkpoint; return the line."""
    layers = [row.layer for row in rows]
    axis.fill_between(
        layers, [row.quartile_1 for row in rows], [row.quartile_3 for row in rows],
        color=style["color"], alpha=0.15, linewidth=0,
    )  # fmt: skip
    (line,) = axis.plot(layers, [row.mean for row in rows], markersize=4, **style)
    return line

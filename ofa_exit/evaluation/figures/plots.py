"""The accuracy-time curve: quality against savings."""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REDUCTIONS = {
    "expected_time_reduction": "expected time (MuE Eq. 14)",
    "flop_reduction": "FLOPs",
    "measured_time_reduction": "measured time",
}
AXES = {
    **{name: f"{label} saved (%)" for name, label in REDUCTIONS.items()},
    "parameter_speedup": "parameter speed-up (BLIPEE)",
}


@dataclass(frozen=True)
class CurvePoint:
    """One row of the CSV."""

    run: str
    quality: float
    savings: dict[str, float | None]  # for each axis, reductions in percent; None = not given


def read_points(
    path: str | os.PathLike[str], quality: str, axes: Sequence[str] = tuple(REDUCTIONS)
) -> list[CurvePoint]:
    """Rows of the CSV. Raises ValueError with file, line, column and remedy."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        needed = ["run", quality, *axes]
        missing = [name for name in needed if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path}, line 1: no column {', '.join(missing)} among "
                f"{', '.join(reader.fieldnames or ['nothing'])}: name the quality column by "
                "--quality and what to draw it against by --axes, and give the CSV the others"
            )
        points = []
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            savings = {
                name: number(row[name], name, where) * (100 if name in REDUCTIONS else 1)
                if row[name]
                else None
                for name in axes
            }
            points.append(CurvePoint(row["run"], number(row[quality], quality, where), savings))
    if not points:
        raise ValueError(f"{path}: no row below the header, so there is nothing to draw")
    return points


def plot_curve(
    points: Sequence[CurvePoint], quality: str, out: str | os.PathLike[str]
) -> list[Path]:
    """Draws a panel for each axis of the points to OUT.png and OUT.svg and returns these paths.

    The files depend on the points alone: no dates, no random names. ImportError where matplotlib
    is absent.
    """
    return save_figure(_figure(points, quality), out)


def save_figure(figure: Any, out: str | os.PathLike[str]) -> list[Path]:
    """Writes OUT.png and OUT.svg without dates, and returns these paths."""
    written = []
    for suffix, metadata in (
        (".png", {"Software": None}),
        (".svg", {"Date": None, "Creator": None}),
    ):
        path = Path(f"{os.fspath(out)}{suffix}")
        figure.savefig(path, metadata=metadata, dpi=150)
        written.append(path)
    return written


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches. ImportError where matplotlib is absent."""
    matplotlib = _matplotlib()
    matplotlib.rcParams["svg.hashsalt"] = "ofa_exit"
    # Figure without pyplot: no window system, and no figure kept open behind the caller's back.
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _figure(points: Sequence[CurvePoint], quality: str) -> Any:
    names = list(points[0].savings)
    figure = new_figure(3.5 * max(len(names), 1.6), 3.6)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    runs = list(dict.fromkeys(point.run for point in points))
    for axis, name in zip(axes, names, strict=True):
        for run in runs:
            drawn = sorted(
                (saving, point.quality)
                for point in points
                if point.run == run and (saving := point.savings[name]) is not None
            )
            if not drawn:
                continue
            (line,) = axis.plot(*zip(*best(drawn)), marker="o", label=run)
            axis.plot(*zip(*drawn), "o", color=line.get_color(), alpha=0.3, markersize=4)
        axis.set_xlabel(AXES[name])
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel(quality)
    axes[0].legend()
    return figure


def best(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (saving, quality) points that no other beats in both, by growing saving.

    The settings of a sweep vary in several thresholds at once; these are the ones to choose from.
    """
    kept: list[tuple[float, float]] = []
    for saving, quality in sorted(points, reverse=True):
        if not kept or quality > kept[-1][1]:
            kept.append((saving, quality))
    return kept[::-1]


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "drawing curves needs matplotlib, which is not installed: pip install 'ofa-exit[plots]'"
        ) from error
    return matplotlib


def number(text: str | None, column: str, where: str) -> float:
    """The finite number in a CSV's field; ValueError that says where it is none."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}, column {column}: {text!r} is not a finite number")
    return value

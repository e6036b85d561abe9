"""The accuracy-time curve: quality against savings (MuE Figures 1, 4, 6; BLIPEE Figure 4b)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.figures.csv_rows import number, read_rows
from ofa_exit.evaluation.figures.methods import VALID, Method

REDUCTIONS = {
    "expected_time_reduction": "expected time (MuE Eq. 14)",
    "flop_reduction": "FLOPs",
    "measured_time_reduction": "measured time",
}
AXES = {
    **{name: f"{label} saved (%)" for name, label in REDUCTIONS.items()},
    "parameter_speedup": "parameter speed-up (BLIPEE)",
}
DOTS_PER_INCH = 150  # of PNG files
# Okabe and Ito's colours for every kind of colour vision, without their yellow, which is pale on
# white. Beyond seven runs the line changes. Markers differ between all runs.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "H")


@dataclass(frozen=True)
class CurvePoint:
    """A setting: one row of the CSV, or a mean over seeds.

    Attributes:
        savings: per axis, reductions in percent; None if not measured.
        lines: axes on which the run's line joins the point; None if the line joins the best of the
            drawn points themselves.
    """

    run: str
    quality: float
    savings: dict[str, float | None]
    lines: frozenset[str] | None = None


def read_points(
    path: str | os.PathLike[str], quality: str, axes: Sequence[str] = tuple(REDUCTIONS)
) -> list[CurvePoint]:
    """Return the rows of the CSV. Raises ValueError with file, line, column and remedy."""
    rows = read_rows(
        path,
        ["run", quality, *axes],
        "Name the quality column with --quality and the savings with --axes",
    )
    points = []
    for where, row in rows:
        savings = {
            name: number(row[name], name, where) * _scale(name) if row[name] else None
            for name in axes
        }
        points.append(CurvePoint(row["run"], number(row[quality], quality, where), savings))
    return points


def method_points(
    methods: Sequence[Method], split: str, quality: str, axes: Sequence[str] = tuple(REDUCTIONS)
) -> list[CurvePoint]:
    """Return a point for every method and setting: means over seeds.

    Lines join the settings that are best on validation, so that ``split`` chooses none.
    """
    points = []
    for method in methods:
        valid = _setting_points(method, VALID, quality, axes)
        named = [replace(point, run=setting) for setting, point in valid.items()]
        kept = {axis: {point.run for point in best(named, axis)} for axis in axes}
        for setting, point in _setting_points(method, split, quality, axes).items():
            lines = frozenset(axis for axis in axes if setting in kept[axis])
            points.append(replace(point, lines=lines))
    return points


def _setting_points(
    method: Method, split: str, quality: str, axes: Sequence[str]
) -> dict[str, CurvePoint]:
    points = {}
    for setting in method.seeds[0][split].settings:
        rows = [seed[split].values(setting) for seed in method.seeds]

        def mean(name: str, rows: list[dict[str, float]] = rows) -> float | None:
            values = [row[name] for row in rows if name in row]
            return sum(values) / len(values) if len(values) == len(rows) else None

        savings = {
            name: None if (value := mean(name)) is None else value * _scale(name) for name in axes
        }
        score = mean(quality)
        assert score is not None  # checked when the methods were read
        points[setting] = CurvePoint(method.name, score, savings)
    return points


def _scale(axis: str) -> int:
    """Return 100 for reductions, which are drawn in percent."""
    return 100 if axis in REDUCTIONS else 1


def run_style(number: int) -> dict[str, str]:
    """Return the colour, line and marker of run ``number``, from 0."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def plot_curve(
    points: Sequence[CurvePoint],
    quality: str,
    out: str | os.PathLike[str],
    rows: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Draw one panel per axis of the points to OUT.png and OUT.svg. Return these paths.

    The files depend on the points alone: they hold no dates and no random names.

    Args:
        rows: titles and runs of the rows of panels; None = one row with all runs.

    Raises:
        ImportError: matplotlib is missing.
    """
    return save_figure(_figure(points, quality, rows), out)


def save_figure(figure: Any, out: str | os.PathLike[str]) -> list[Path]:
    """Write OUT.png and OUT.svg without dates. Return these paths."""
    written = []
    for suffix, metadata in (
        (".png", {"Software": None}),
        (".svg", {"Date": None, "Creator": None}),
    ):
        path = Path(f"{os.fspath(out)}{suffix}")
        figure.savefig(path, metadata=metadata, dpi=DOTS_PER_INCH)
        written.append(path)
    return written


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches. Raises ImportError if matplotlib is missing."""
    matplotlib = _matplotlib()
    matplotlib.rcParams["svg.hashsalt"] = "ofa_exit"
    # Without pyplot, no window system is needed, and no figure stays open in a global list.
    return matplotlib.figure.Figure(
        figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained"
    )


def _figure(
    points: Sequence[CurvePoint], quality: str, rows: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """Draw a row of panels for each of ``rows``, one panel per saving."""
    names = list(points[0].savings)
    rows = rows or {"": list(dict.fromkeys(point.run for point in points))}
    # A line of the legend takes 0.24 inches.
    heights = [max(3.6 if len(rows) == 1 else 2.5, 0.24 * len(runs)) for runs in rows.values()]
    figure = new_figure(3.5 * max(len(names), 1.6) + 1.8, sum(heights))
    axes = figure.subplots(
        len(rows), len(names), sharex="col", sharey=True, squeeze=False, height_ratios=heights
    )
    for row, (title, runs) in zip(axes, rows.items(), strict=True):
        styles = {run: run_style(place) for place, run in enumerate(runs)}
        entries: dict[str, Any] = {}
        for axis, name in zip(row, names, strict=True):
            for run in runs:
                own = [point for point in points if point.run == run]
                if line := _draw(axis, own, name, styles[run]):
                    entries[run] = line
            axis.grid(True, alpha=0.3)
        row[0].set_title(title, loc="left")
        row[0].set_ylabel(quality)
        shown = [run for run in runs if run in entries]
        row[-1].legend(
            [entries[run] for run in shown], shown, loc="center left", bbox_to_anchor=(1.02, 0.5)
        )
    for axis, name in zip(axes[-1], names, strict=True):
        axis.set_xlabel(AXES[name])
    return figure


def _draw(axis: Any, points: Sequence[CurvePoint], name: str, style: Mapping[str, str]) -> Any:
    """Draw a run; return its line, or None if it has no such saving."""
    if not (drawn := _placed(points, name)):
        return None
    joined = _placed(_on_line(points, name), name)
    (line,) = axis.plot([x for x, _ in joined], [y for _, y in joined], markersize=5, **style)
    axis.plot(*zip(*drawn), **{**style, "linestyle": ""}, alpha=0.25, markersize=4)
    return line


def _placed(points: Sequence[CurvePoint], axis: str) -> list[tuple[float, float]]:
    """Return (saving, quality) of the points that have the saving, by increasing saving."""
    placed = ((point.savings[axis], point.quality) for point in points)
    return sorted((saving, quality) for saving, quality in placed if saving is not None)


def _on_line(points: Sequence[CurvePoint], axis: str) -> list[CurvePoint]:
    """Return the points of a run that its line joins."""
    if any(point.lines is None for point in points):
        return best(points, axis)
    return [point for point in points if point.lines and axis in point.lines]


def best(points: Sequence[CurvePoint], axis: str) -> list[CurvePoint]:
    """Return the points that no other beats in saving and quality, by increasing saving.

    The settings of a sweep vary several thresholds at once: these are the ones to choose from.
    """
    measured = [(saving, p.quality, p) for p in points if (saving := p.savings[axis]) is not None]
    kept: list[CurvePoint] = []
    for _, quality, point in sorted(measured, key=lambda one: one[:2], reverse=True):
        if not kept or quality > kept[-1].quality:
            kept.append(point)
    return kept[::-1]


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "drawing curves needs matplotlib, which is missing: pip install 'ofa-exit[plots]'"
        ) from error
    return matplotlib

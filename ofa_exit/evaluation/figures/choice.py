"""Selection of an exit setting on one split, and its lines on others."""

import csv
from pathlib import Path

SHOWN = (
    "image_layers",
    "text_layers",
    "decoder_layers",
    "expected_time_reduction",
    "flop_reduction",
    "measured_time_reduction",
    "parameter_speedup",
)
Row = dict[str, str]


def read_settings(path: str | Path) -> dict[str, Row]:
    """Lines of a sweep's CSV by their setting. Raises ValueError for a file that is none."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "setting" not in rows[0]:
        raise ValueError(f"{path} is no table of ofa-exit sweep")
    return {row["setting"]: row for row in rows}


def choose(settings: dict[str, Row], quality: str, wanted: float, by: str) -> str:
    """The setting that saves most of those with a ``quality`` of at least ``wanted``; the first
    line, no exits, where none reaches it."""
    good = [name for name, row in settings.items() if float(row[quality]) >= wanted]
    return max(good, key=lambda name: float(settings[name][by]), default=next(iter(settings)))


def table(setting: str, files: dict[str, dict[str, Row]], quality: str) -> list[Row]:
    """The chosen setting's line in every file, its quality also as a share of the first line's."""
    lines = []
    for name, settings in files.items():
        if setting not in settings:
            raise ValueError(f"{name} has no line for the setting chosen: {setting}")
        row, first = settings[setting], next(iter(settings.values()))
        share = float(row[quality]) / (float(first[quality]) or float("nan"))
        shown = {column: f"{float(row[column]):.3g}" for column in SHOWN if row.get(column)}
        line = {"file": name, "run": row["run"], quality: f"{float(row[quality]):.1f}"}
        lines.append({**line, "of no exits": f"{100 * share:.1f} %", **shown})
    return lines

"""Selection of an exit setting on one split, and its lines on others."""

from pathlib import Path

from ofa_exit.evaluation.figures.csv_rows import read_rows

SHOWN = (
    "image_layers",
    "text_layers",
    "decoder_layers",
    "expected_time_reduction",
    "flop_reduction",
    "measured_time_reduction",
    "parameter_speedup",
)
REFERENCE = "reference"
"""Setting of the line that a sweep adds for the model of --reference."""

Row = dict[str, str]


def read_settings(path: str | Path) -> dict[str, Row]:
    """Return the rows of a sweep's CSV by their setting, without that of ``--reference``.

    Raises ValueError for other files, and for a setting that comes twice.
    """
    settings: dict[str, Row] = {}
    for where, row in read_rows(path, ["setting"], "Give a CSV file of ofa-exit sweep"):
        if row["setting"] in settings:
            raise ValueError(
                f"{where}: the setting {row['setting']!r} comes twice. Keep one line for each"
            )
        settings[row["setting"]] = row
    settings.pop(REFERENCE, None)
    return settings


def choose(settings: dict[str, Row], quality: str, wanted: float, by: str) -> str:
    """Return the setting that saves most among those with a ``quality`` of at least ``wanted``.

    Where none reaches it, return the first one, which has no exits.
    """
    good = [name for name, row in settings.items() if float(row[quality]) >= wanted]
    return max(good, key=lambda name: float(settings[name][by]), default=next(iter(settings)))


def table(setting: str, files: dict[str, dict[str, Row]], quality: str) -> list[Row]:
    """Return the setting's row in every file, with its quality relative to the first row."""
    lines = []
    for name, settings in files.items():
        if setting not in settings:
            raise ValueError(f"{name} has no line for the chosen setting: {setting}")
        row, first = settings[setting], next(iter(settings.values()))
        share = float(row[quality]) / (float(first[quality]) or float("nan"))
        shown = {column: f"{float(row[column]):.3g}" for column in SHOWN if row.get(column)}
        line = {"file": name, "run": row["run"], quality: f"{float(row[quality]):.1f}"}
        lines.append({**line, "of no exits": f"{100 * share:.1f} %", **shown})
    return lines

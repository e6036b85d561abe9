"""Exit settings chosen on one split and read on others.

    ofa-exit choose --baseline results/caption_valid_plain.csv \\
        results/caption_valid_mue.csv results/caption_test_artist_mue.csv …

Takes CSV files of ``ofa-exit sweep``. Of the settings whose quality in the first file is
at least ``--keep`` of the baseline's first line (its model without exits), the one that saves most
by ``--by`` is chosen; its line in every file is printed. A threshold that is looked up in the same
file as its quality would be flattered by it.
"""

import argparse
import sys
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
Row = dict[str, str]


def read_settings(path: str | Path) -> dict[str, Row]:
    """Return the rows of a sweep's CSV by their setting. Raises ValueError for other files."""
    rows = read_rows(path, ["setting"], "Give a CSV file of ofa-exit sweep")
    return {row["setting"]: row for _, row in rows}


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


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ofa-exit choose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("valid", help="sweep on the split to choose on")
    parser.add_argument("tests", nargs="*", help="sweeps of the same settings on others")
    parser.add_argument("--quality", default="CIDEr", help="column (default %(default)s)")
    parser.add_argument("--keep", type=float, default=0.96, help="share (default %(default)s)")
    parser.add_argument("--baseline", help="sweep whose first line is 1 (default: VALID)")
    parser.add_argument("--by", default="expected_time_reduction", help="default %(default)s")
    given = parser.parse_args()
    try:
        files = {name: read_settings(name) for name in (given.valid, *given.tests)}
        baseline = next(iter(read_settings(given.baseline or given.valid).values()))
        wanted = given.keep * float(baseline[given.quality])
        setting = choose(files[given.valid], given.quality, wanted, given.by)
        lines = table(setting, files, given.quality)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"no column {error}" if isinstance(error, KeyError) else str(error))
    print(f"{setting}: at least {wanted:.1f} {given.quality} wanted on {given.valid}")
    print("\t".join(lines[0]))
    for line in lines:
        print("\t".join(line.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

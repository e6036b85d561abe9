"""``ofa-exit table NAME=FOLDER…``: fairseq-generate's results side by side.

FOLDER holds what ``fairseq-generate --results-path FOLDER`` wrote and, as ``log.txt``, what it
printed. The first is what the time of the others is compared with: the run at full depth.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

QUALITY = re.compile(r"([A-Z][A-Za-z0-9-]*|accuracy) = (-?[0-9.]+)")
SUMMARY = re.compile(r"Exit summary(?: of model 1 of \d+)?: (.*)")
SHOWN = ("CIDEr", "BLEU-4", "accuracy")


def read_run(folder: Path) -> dict[str, Any]:
    """Quality and exit summary of the one generation in ``folder``.

    Raises ValueError, with the remedy, if the generation did not come to its end.
    """
    files = sorted(folder.glob("generate-*.txt"))
    if len(files) != 1:
        raise ValueError(f"{folder} holds {len(files)} files generate-*.txt: name a folder of one")
    result, summary = None, None
    log = folder / "log.txt"
    text = files[0].read_text(encoding="utf-8") + "\n"
    for line in (text + (log.read_text(encoding="utf-8") if log.exists() else "")).splitlines():
        if line.startswith("Generate "):
            result = line
        elif found := SUMMARY.match(line):
            summary = json.loads(found[1])
    if result is None or summary is None:
        raise ValueError(f"{files[0]} ends before its result: generate it again")
    return {**{name: float(value) for name, value in QUALITY.findall(result)}, **summary}


def compare(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a run, with the measured time reduction against the first."""
    rows = []
    first = next(iter(runs.values()))
    for name, values in runs.items():
        ratio = values["seconds_per_sentence"] / first["seconds_per_sentence"]
        rows.append({"run": name, **values, "measured_time_reduction": 1 - ratio})
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows for people: quality, layers, and the three reductions in percent."""
    quality = [name for name in SHOWN if name in rows[0]]
    header = ["run", *quality, "image", "text", "decoder", "expected", "FLOPs", "measured", "ms"]
    lines = [header]
    for row in rows:
        layers = [row[f"{part}_layers"] for part in ("image", "text", "decoder")]
        saved = [row[f"{kind}_reduction"] for kind in ("expected_time", "flop", "measured_time")]
        lines.append(
            [
                row["run"],
                *(f"{row[name]:.1f}" for name in quality),
                *("-" if depth is None else f"{depth:.2f}" for depth in layers),
                *(f"{0.0 - 100 * part:.1f}%" for part in saved),
                f"{1000 * row['seconds_per_sentence']:.1f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    shown = (
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    )
    return "\n".join(
        [
            *shown,
            "layers: mean used. Time against the first run: expected by MuE Eq. 14, by counted "
            "FLOPs, and measured",
            "(-10% saves a tenth; runs one after the other on a busy machine measure the machine: "
            "ofa_exit.cli.sweep interleaves)",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ofa-exit table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--csv", type=Path, help="also write the rows to this file")
    given = parser.parse_args()
    try:
        runs = {}
        for run in given.runs:
            name, found, folder = run.partition("=")
            if not found:
                raise ValueError(f"{run!r}: give NAME=FOLDER")
            runs[name] = read_run(Path(folder))
        rows = compare(runs)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(rows))
    if given.csv:
        with open(given.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Results of finished generations side by side."""

import json
import re
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ofa_exit.regular_files import regular_file

QUALITY = re.compile(r"([A-Z][A-Za-z0-9-]*|accuracy) = (-?[0-9.]+)")
SUMMARY = re.compile(r"Exit summary(?: of model 1 of \d+)?: (.*)")
SHOWN = ("CIDEr", "BLEU-4", "accuracy")


def read_run(folder: Path) -> dict[str, Any]:
    """Quality and exit summary of the one generation in ``folder``.

    A generation without references has no quality.

    Raises ValueError, with the remedy, if the generation did not come to its end.
    """
    files = sorted(folder.glob("generate-*.txt"))
    if len(files) != 1:
        raise ValueError(f"{folder} holds {len(files)} files generate-*.txt: name a folder of one")
    result, summary, has_references = None, None, False
    log = folder / "log.txt"
    text = "\n".join(
        regular_file(file).read_text(encoding="utf-8") for file in (files[0], log) if file.exists()
    )
    for line in text.splitlines():
        if line.startswith("Generate "):
            result = line
        elif line.startswith("T-"):
            has_references = True
        elif found := SUMMARY.match(line):
            summary = json.loads(found[1])
    if summary is None or (result is None and has_references):
        raise ValueError(f"{files[0]} ends before its result: generate it again")
    return {**{name: float(value) for name, value in QUALITY.findall(result or "")}, **summary}


def compare(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per run, with its measured time reduction relative to the first run."""
    rows = []
    first = next(iter(runs.values()))
    for name, values in runs.items():
        ratio = values["seconds_per_sentence"] / first["seconds_per_sentence"]
        rows.append({"run": name, **values, "measured_time_reduction": 1 - ratio})
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table: quality, layers, and the three reductions in percent."""
    quality = [name for name in SHOWN if name in rows[0]]
    header = ["run", *quality, "image", "text", "decoder", "expected", "FLOPs", "measured", "ms"]
    lines = []
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
    align = ["left", *["right"] * (len(header) - 1)]
    table = tabulate(lines, header, tablefmt="plain", disable_numparse=True, colalign=align)
    return (
        f"{table}\n"
        "Layers are means. Savings: expected time (MuE Eq. 14) and counted FLOPs against full "
        "depth, measured time\nagainst the first run; -10% saves a tenth. Separate runs on a busy "
        "machine measure the machine: ofa-exit\nsweep interleaves the settings."
    )

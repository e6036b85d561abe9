"""Runs the scripts of the built-in data on a few rows."""

from pathlib import Path

from helpers.paths import ROOT
from helpers.script_runs import run

EMOJI = ROOT / "examples" / "emoji"
SCRIPTS = ROOT / "run_scripts" / "emoji"


def few_rows(folder: Path, rows: int = 8) -> Path:
    folder.mkdir()
    (folder / "dict.txt").write_bytes((EMOJI / "dict.txt").read_bytes())
    for file in EMOJI.glob("*.tsv"):
        with file.open(encoding="utf-8") as lines:
            few = [line for _, line in zip(range(rows), lines)]
        (folder / file.name).write_text("".join(few), encoding="utf-8")
    return folder


def script(name: str, *arguments: object, **environment: str) -> str:
    """Runs a script of the emoji data from another directory; returns all that it printed."""
    return run(f"emoji/{name}", *arguments, **environment)

"""Runs of the emoji scripts on a few rows of the built-in data."""

from pathlib import Path

from helpers.paths import ROOT
from helpers.script_runs import run

EMOJI = ROOT / "examples" / "emoji"
PLAIN = ROOT / "examples" / "checkpoints" / "ofa_nano_caption.pt"


def few_rows(folder: Path, rows: int = 8) -> Path:
    """Write the first rows of every file of the built-in data to ``folder``."""
    folder.mkdir()
    (folder / "dict.txt").write_bytes((EMOJI / "dict.txt").read_bytes())
    for file in EMOJI.glob("*.tsv"):
        with file.open(encoding="utf-8") as lines:
            few = [line for _, line in zip(range(rows), lines)]
        (folder / file.name).write_text("".join(few), encoding="utf-8")
    return folder


def script(name: str, *arguments: object, **environment: str) -> str:
    """Run an emoji script from another directory; return all that it printed."""
    return run(f"emoji/{name}", *arguments, **environment)

"""What the measurements of a device have in common: options, and the file they write."""

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.generate import numbers
from ofa_exit.models.archs import ARCHS


def device_parser(
    program: str, description: str | None, steps: int, step: str
) -> argparse.ArgumentParser:
    """Return a parser with the options of a model, its batches, the device and the file.

    Args:
        program: name of the module.
        steps: default of ``--steps``.
        step: what a step is.
    """
    built = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    add = built.add_argument
    shown = "(default %(default)s)"
    add("--arch", default="ofa_base", choices=list(ARCHS), help=shown)
    add("--image-size", type=int, default=480, metavar="PIXELS", help=shown)
    add("--batch-size", type=numbers, default=[1, 8, 32], metavar="N,…", help="(default 1,8,32)")
    add("--steps", type=int, default=steps, help=f"{step} {shown}")
    add("--vocabulary", type=int, default=59457, help=shown)
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float16", help=shown)
    add("--device", choices=["cpu", "cuda"], default="cuda", help=shown)
    add("--csv", type=Path, required=True, metavar="FILE", help="file to write")
    return built


def write_lines(path: Path, columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> None:
    """Write a CSV file of lines by column."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)

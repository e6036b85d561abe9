"""Rows of the CSV files that the figures are made of."""

import csv
import math
import os
from collections.abc import Sequence

from ofa_exit.regular_files import regular_file


def read_rows(
    path: str | os.PathLike[str], columns: Sequence[str], remedy: str
) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a CSV file with a header, each after its place: file and line.

    Raises ValueError, with ``remedy``, if one of ``columns`` is missing or there is no row.
    """
    with open(regular_file(path), newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(
                f"{path}, line 1: no column {', '.join(missing)} among "
                f"{', '.join(header) or 'nothing'}. {remedy}"
            )
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    if not rows:
        raise ValueError(f"{path}: no row below the header. {remedy}")
    return rows


def number(text: str | None, column: str, where: str) -> float:
    """Return the finite number in a field. Raises ValueError, with place and column, for others."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}, column {column}: {text!r} is not a finite number")
    return value

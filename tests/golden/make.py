"""Writes the golden files by the code as it is: ``PYTHONPATH=.:tests python -m golden.make``.

Names of cases, or parts of them, write these alone.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from .cases import CASES, run_case, write_data

FOLDER = Path(__file__).parent / "files"


def golden_file(name: str) -> Path:
    return FOLDER / f"{name}.json.gz"


def write(name: str, values: dict[str, Any]) -> None:
    """The same values give the same bytes."""
    text = json.dumps(values, separators=(",", ":"))
    golden_file(name).write_bytes(gzip.compress(text.encode(), mtime=0))


def read(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(golden_file(name).read_bytes()))


def main() -> None:
    wanted, sys.argv = sys.argv[1:], sys.argv[:1]  # fairseq's parsers read them, too
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder))
        for name, case in CASES.items():
            if not wanted or any(part in name for part in wanted):
                write(name, run_case(case, data, data / "trace.jsonl"))


if __name__ == "__main__":
    main()

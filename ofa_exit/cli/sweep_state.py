"""Finished batches of a sweep in a file, so that the same command resumes after them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from ofa_exit.data.files import write_bytes
from ofa_exit.plugin.errors import UsageError
from ofa_exit.writing import append

Batch = list[dict[str, Any]]
"""What each setting measured in a batch, see ``Setting.batch``."""


class FinishedBatches:
    """JSON lines: which sweep it is, then a line per batch that all settings have generated.

    What a killed process left of a line is dropped.

    Args:
        path: of the file; None keeps nothing.
        record: what makes the sweep: settings, checkpoints, data and options, as JSON values.

    Raises:
        UsageError: the file belongs to another sweep. The message names what differs.
    """

    def __init__(self, path: Optional[Path], record: dict[str, Any]) -> None:
        self.path = path
        self.batches: list[Batch] = []
        self.last = -1
        """Number of the last finished batch; -1 = none."""
        if path is None:
            return
        record = json.loads(json.dumps(record, default=str))
        lines = whole_lines(path)
        if lines:
            differing = [name for name in {**lines[0], **record} if _differ(lines[0], record, name)]
            if differing:
                raise UsageError(
                    f"{path} belongs to a sweep of other settings or files "
                    f"({', '.join(differing)}). Remove it, or name another OUT.csv"
                )
            self.batches = [line["settings"] for line in lines[1:]]
            self.last = lines[-1].get("batch", -1)
        text = "".join(json.dumps(line) + "\n" for line in lines or [record])
        write_bytes(path, text.encode())

    def add(self, number: int, batch: Sequence[Mapping[str, Any]]) -> None:
        """Append a batch that all settings have generated. Raise WriteError if it does not fit."""
        if self.path is not None:
            line = json.dumps({"batch": number, "settings": list(batch)}) + "\n"
            append(self.path, line.encode())


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, up to the first line that is incomplete."""
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(value, dict):
            break
        found.append(value)
    return found


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    return one.get(name) != other.get(name)

"""Result files of the benchmarks: reading them, matching them to annotations, and the report.

Identifiers are compared as text, so 42 and "42" are the same.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_SHOWN = 5
ResultPath = str | os.PathLike[str]


@dataclass
class Scores:
    """What a benchmark says of a result file.

    values: the metrics in the order to print, in percent where their benchmark says nothing else;
    breakdowns: for a kind of question (or an image's domain) the value and how many there were;
    notes: what is absent, and why.
    """

    values: dict[str, float]
    counted: int
    unit: str  # what was counted: questions, images
    breakdowns: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For people: one metric a line, then the breakdowns."""
        lines = [f"{name} = {value:.2f}" for name, value in self.values.items()]
        lines.append(f"({self.counted} {self.unit})")
        for title, parts in self.breakdowns.items():
            lines += ["", f"{title}:"]
            width = max(map(len, parts), default=0)
            lines += [
                f"  {name.ljust(width)}  {value:6.2f}  ({count})"
                for name, (value, count) in parts.items()
            ]
        return "\n".join([*lines, *([""] * bool(self.notes)), *self.notes])

    def line(self) -> str:
        """The metrics alone, in one line."""
        numbers = " ".join(f"{name} = {value:.2f}" for name, value in self.values.items())
        return f"{numbers} ({self.counted} {self.unit})"

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


class Means:
    """Means of a metric over all, and over each part of it."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, part: str, value: float) -> None:
        self._values.setdefault(part, []).append(value)

    def percent(self) -> dict[str, tuple[float, int]]:
        """Part → (mean ×100, how many), the parts in order, numbers by size."""
        return {
            part: (100 * sum(values) / len(values), len(values))
            for part, values in sorted(self._values.items(), key=lambda item: _by_size(item[0]))
        }


def read_json(path: ResultPath) -> Any:
    """The file's content. Raises ValueError with file and line where it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: no JSON ({error.msg}). Was the file written to its end?"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def member(record: Any, name: str, where: str, kind: type | tuple[type, ...] = object) -> Any:
    """``record[name]`` of a JSON object; ValueError that says where it is missing or wrong."""
    if not isinstance(record, Mapping) or name not in record:
        raise ValueError(f"{where}: no {name!r}. Is this the file that the option asks for?")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (object, bool)):
        raise ValueError(f"{where}: {name!r} is {type(value).__name__} {str(value)[:40]!r}")
    return value


def indexed(
    records: Any, keys: tuple[str, ...], path: ResultPath, what: str
) -> dict[str, Mapping[str, Any]]:
    """The objects of a JSON list by their identifiers, in the file's order.

    Several ``keys`` make one identifier, parted by spaces. Raises ValueError: no list, an object
    without identifier, or one that comes twice.
    """
    if not isinstance(records, list):
        raise ValueError(f"{path}: {what} should be a list of objects with {', '.join(keys)}")
    found: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(records, start=1):
        where = f"{path}, entry {number}"
        name = " ".join(str(member(record, key, where, (str, int))) for key in keys)
        if name in found:
            raise ValueError(f"{where}: {' '.join(keys)} {name} comes twice. Leave one of them")
        found[name] = record
    if not found:
        raise ValueError(f"{path}: {what} has no entries")
    return found


def read_results(path: ResultPath, keys: tuple[str, ...], value: str, kind: type) -> dict[str, Any]:
    """Identifier → value of a result file: a JSON list of objects with ``keys`` and ``value``.

    Raises ValueError, with file and identifier, for anything else.
    """
    entries = indexed(read_json(path), keys, path, "the results")
    return {
        name: member(entry, value, f"{path}, {' '.join(keys)} {name}", kind)
        for name, entry in entries.items()
    }


def matched(
    results: Mapping[str, Any],
    expected: Iterable[str],
    known: Iterable[str],
    path: ResultPath,
    annotations: ResultPath,
    what: str,
    allow_missing: bool,
) -> list[str]:
    """The identifiers to score, in the annotations' order.

    expected: those that must have a result, if not ``allow_missing``; known: all that may. Raises
    ValueError that names the first identifiers that are missing or unknown.
    """
    known = set(known)
    unknown = [name for name in results if name not in known]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(results)} results are for no {what} of {annotations}: "
            f"{_first(unknown)}. Score the split that the results are for"
        )
    expected = list(expected)
    missing = [name for name in expected if name not in results]
    if missing and not allow_missing:
        raise ValueError(
            f"{path}: no result for {len(missing)} of {len(expected)} of {annotations}: {what} "
            f"{_first(missing)}. Predict them too, or score the others with --allow-missing"
        )
    scored = [name for name in expected if name in results]
    if not scored:
        raise ValueError(f"{path}: there is nothing to score")
    return scored


def missing_note(scored: int, expected: int) -> list[str]:
    """The remark that part of the split was scored; none where all of it was."""
    if scored == expected:
        return []
    return [f"only {scored} of {expected} have a result: no number to compare with papers"]


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)


def _by_size(part: str) -> tuple[float, str]:
    return (float(part), "") if part.isdecimal() else (0.0, part)

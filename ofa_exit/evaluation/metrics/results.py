"""Result files of the benchmarks: read them, match them to annotations, report the scores.

Identifiers are compared as text: 42 and "42" are the same.
"""

import json
import os
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from ofa_exit.regular_files import regular_file

_NAMES_SHOWN = 5
ResultPath = str | os.PathLike[str]


@dataclass
class Scores:
    """The scores of a result file.

    Args:
        values: metrics in the order to print, in percent unless their benchmark has another unit.
        counted: number of questions or images scored; ``unit`` says which.
        breakdowns: title → part (a kind of question, a domain) → (value, count).
        notes: which metrics are missing, and why.
    """

    values: dict[str, float]
    counted: int
    unit: str
    breakdowns: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return a report for people: one metric per line, then the breakdowns."""
        lines = [f"{name} = {value:.2f}" for name, value in self.values.items()]
        lines.append(f"({self.counted} {self.unit})")
        for title, parts in self.breakdowns.items():
            rows = [(name, f"{value:.2f}", f"({count})") for name, (value, count) in parts.items()]
            table = tabulate(
                rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True
            )
            lines += ["", f"{title}:", textwrap.indent(table, "  ")]
        return "\n".join([*lines, *([""] * bool(self.notes)), *self.notes])

    def line(self) -> str:
        """Return the metrics and the notes on one line."""
        numbers = " ".join(f"{name} = {value:.2f}" for name, value in self.values.items())
        return f"{numbers} ({', '.join([f'{self.counted} {self.unit}', *self.notes])})"


class Means:
    """Means of a metric over each part of a set."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, part: str, value: float) -> None:
        self._values.setdefault(part, []).append(value)

    def percent(self) -> dict[str, tuple[float, int]]:
        """Return part → (mean ×100, count). Parts are sorted, numeric ones by size."""
        return {
            part: (100 * sum(values) / len(values), len(values))
            for part, values in sorted(self._values.items(), key=lambda item: _by_size(item[0]))
        }


def read_json(path: ResultPath) -> Any:
    """Return the content of a JSON file. Raises ValueError, with file and line, for others."""
    try:
        return json.loads(regular_file(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: no JSON ({error.msg}). Is the file complete?"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: its lists are nested too deeply. Is this the file?") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def require_field(
    record: Any, name: str, where: str, kind: type | tuple[type, ...] = object
) -> Any:
    """Return ``record[name]`` of a JSON object.

    Raises ValueError, with ``where``, if it is missing or not of ``kind``.
    """
    if not isinstance(record, Mapping) or name not in record:
        raise ValueError(f"{where}: no {name!r}. Is this the file that the option asks for?")
    value = record[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (object, bool)):
        raise ValueError(f"{where}: {name!r} is {type(value).__name__} {str(value)[:40]!r}")
    return value


def index_by_id(
    records: Any, keys: tuple[str, ...], path: ResultPath, what: str
) -> dict[str, Mapping[str, Any]]:
    """Return the objects of a JSON list by their identifiers, in the file's order.

    Several ``keys`` make one identifier, separated by spaces. Raises ValueError: not a list, an
    object without identifier, a duplicate identifier.
    """
    if not isinstance(records, list):
        raise ValueError(f"{path}: {what} should be a list of objects with {', '.join(keys)}")
    found: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(records, start=1):
        where = f"{path}, entry {number}"
        name = " ".join(str(require_field(record, key, where, (str, int))) for key in keys)
        if name in found:
            raise ValueError(f"{where}: {' '.join(keys)} {name} comes twice. Keep one of them")
        found[name] = record
    if not found:
        raise ValueError(f"{path}: {what} has no entries")
    return found


def read_results(path: ResultPath, keys: tuple[str, ...], value: str, kind: type) -> dict[str, Any]:
    """Return identifier → value of a result file.

    The file is a JSON list of objects with ``keys`` and ``value``. Raises ValueError, with file and
    identifier, for anything else.
    """
    entries = index_by_id(read_json(path), keys, path, "the results")
    return {
        name: require_field(entry, value, f"{path}, {' '.join(keys)} {name}", kind)
        for name, entry in entries.items()
    }


def select_scored(
    results: Mapping[str, Any],
    expected: Iterable[str],
    path: ResultPath,
    annotations: ResultPath,
    what: str,
    allow_missing: bool,
    ignore_others: bool = False,
) -> list[str]:
    """Return the identifiers to score, in the order of the annotations.

    Args:
        expected: identifiers that must have a result, unless ``allow_missing``.
        what: what an identifier stands for: question, image.
        ignore_others: allow results for other identifiers.

    Raises ValueError, with the first identifiers that are missing or unknown.
    """
    expected = dict.fromkeys(expected)
    unknown = [name for name in results if name not in expected]
    if unknown and not ignore_others:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(results)} results are for no {what} of {annotations}: "
            f"{_first(unknown)}. Score the split that the results are for"
        )
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
    """Return a note if only a part of the split was scored."""
    if scored == expected:
        return []
    return [f"only {scored} of {expected} have a result: do not compare the scores with papers"]


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + ", …" * (len(names) > _NAMES_SHOWN)


def _by_size(part: str) -> tuple[float, str]:
    return (float(part), "") if part.isdecimal() else (0.0, part)

"""The shards of one generation: read each folder, and merge their rows in order.

A folder holds the output of ``fairseq-generate --num-shards N --shard-id I --results-path FOLDER``
and, as ``log.txt``, what the command printed.
"""

import heapq
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa_exit.evaluation.efficiency.totals import RunTotals
from ofa_exit.evaluation.metrics.results import require_field
from ofa_exit.regular_files import regular_file

_RECORD = re.compile(r"Exit shard(?: of model (\d+) of \d+)?: (.*)")
_RESULT = re.compile(r"(Generate .* with beam=\d+): ")
_LINE = re.compile(r"[A-Z]-(\d+)(?:_\d+)?\t")
_NUMBERS = ("shard", "of", "rows", "all_rows")


@dataclass(frozen=True)
class Shard:
    """One shard of a generation.

    Args:
        generated: generate-SPLIT.txt.
        head: "Generate SPLIT with beam=B".
        shard, count: the shard's number, from 0, and the number of shards.
        rows, all_rows: rows of the shard and of the data set.
        run: settings of the generation, by name: files, models, options.
        totals: one per model.
        traces: SHA-256 of each model's trace file, None without one.
    """

    folder: Path
    generated: Path
    head: str
    shard: int
    count: int
    rows: int
    all_rows: int
    run: dict[str, Any]
    totals: list[RunTotals]
    traces: list[str | None]

    @property
    def name(self) -> str:
        return f"{self.folder} (shard {self.shard} of {self.count})"


@dataclass(frozen=True)
class Row:
    """The lines that were generated for one row of the data, as they were written."""

    number: int
    shard: Shard
    lines: list[str]

    def text(self, kind: str) -> str:
        """Return the text of the first T- line (references) or D- line (best hypothesis).

        A row without references has no T- line, or in files of earlier releases an empty one: its
        text is empty. Raises ValueError if there is no D- line.
        """
        for line in self.lines:
            if line.startswith(f"{kind}-"):
                return line.rstrip("\n").split("\t", 1 if kind == "T" else 2)[-1]
        if kind == "T":
            return ""
        raise ValueError(f"{self.shard.generated}: row {self.number} has no line {kind}-…")


def read_shard(folder: Path) -> Shard:
    """Return the shard in ``folder``. Raises ValueError, with the remedy, if it is incomplete."""
    files = sorted(folder.glob("generate-*.txt"))
    if len(files) != 1:
        raise ValueError(
            f"{folder} holds {len(files)} files generate-*.txt. Give the folder of one shard, its "
            "--results-path (shards with the same one overwrite each other)"
        )
    heads = [result[1] for line in _lines(files[0]) if (result := _RESULT.match(line))]
    # Without references nothing is scored, and there is neither a T- line nor a result.
    if len(heads) != 1 and (heads or any(line.startswith("T-") for line in _lines(files[0]))):
        raise ValueError(f"{files[0]} ends before its result. Generate that shard again")
    log = folder / "log.txt"
    if not log.is_file():
        raise ValueError(
            f"{folder} has no log.txt. Keep there what fairseq-generate prints: "
            f"2>&1 | tee {folder}/log.txt"
        )
    matches = [_RECORD.match(line) for line in _lines(log)]
    records = [(int(match[1] or 1), match[2]) for match in matches if match]
    if [number for number, _ in records] != [*range(1, len(records) + 1)] or not records:
        raise ValueError(
            f"{log}: no line 'Exit shard: …', or more than one. Keep there the output of one "
            "complete fairseq-generate with --num-shards"
        )
    try:
        values = [json.loads(text) for _, text in records]
        totals = [RunTotals.from_dict(require_field(one, "totals", "the record")) for one in values]
        shard, count, rows, all_rows = (
            require_field(values[0], name, "the record", int) for name in _NUMBERS
        )
        run = require_field(values[0], "run", "the record", dict)
        if not (0 <= shard < count and min(rows, all_rows) >= 0):
            raise ValueError(f"shard {shard} of {count} with {rows} of {all_rows} rows cannot be")
        traces = [one.get("trace") for one in values]
        if not all(trace is None or isinstance(trace, str) for trace in traces):
            raise ValueError("'trace' is not the hash of a trace")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{log}, line 'Exit shard': {error}") from None
    if not heads:
        heads = [f"Generate {run.get('--gen-subset')} with beam={run.get('--beam', 5)}"]
    return Shard(folder, files[0], heads[0], shard, count, rows, all_rows, run, totals, traces)


def check_shards(shards: Sequence[Shard]) -> None:
    """Raise ValueError, with names, unless these are all shards of one generation, each once."""
    first = shards[0]
    for other in shards[1:]:
        for what, ours, theirs in (
            ("are parts of different numbers of shards", first.count, other.count),
            ("are of different splits or beams", first.head, other.head),
            ("are of data sets of different length", first.all_rows, other.all_rows),
            ("ran different numbers of models", len(first.totals), len(other.totals)),
        ):
            if ours != theirs:
                raise ValueError(f"{first.name} and {other.name} {what}: {ours} and {theirs}")
        if different := _differences(first.run, other.run):
            raise ValueError(
                f"{first.name} and {other.name} are of different generations. "
                f"{'; '.join(different)}. Generate one of them again"
            )
    by_number: dict[int, Shard] = {}
    for shard in shards:
        if shard.shard in by_number:
            raise ValueError(
                f"{by_number[shard.shard].folder} and {shard.folder} are both shard {shard.shard} "
                f"of {shard.count}"
            )
        by_number[shard.shard] = shard
    absent = (str(number) for number in range(first.count) if number not in by_number)
    missing = list(itertools.islice(absent, 5))  # a damaged report may count millions
    if missing:
        raise ValueError(
            f"of {first.count} shards (from 0) there is no {', no '.join(missing)}: generate with "
            f"--num-shards {first.count} --shard-id {missing[0]}, or name its folder"
        )
    rows = sum(shard.rows for shard in shards)
    if rows != first.all_rows:
        raise ValueError(
            f"the shards have {rows} rows together, the data set {first.all_rows}. Batches are "
            "distributed, so all shards need the same --batch-size (or --max-tokens)"
        )


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return the settings in which two shards differ."""
    return [
        f"{name}: {_text(ours.get(name))} and {_text(theirs.get(name))}"
        for name in {**ours, **theirs}
        if _content(ours.get(name)) != _content(theirs.get(name))
    ]


def _content(value: Any) -> Any:
    """Return the content of a file, wherever it is; its path if nothing else is known."""
    if isinstance(value, list):
        return [_content(item) for item in value]
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if name != "path"} or value
    return value


def _text(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return " ".join(
            f"{item}" if name == "path" else f"({name} {item})" for name, item in value.items()
        )
    return f"{value}"


def merged_rows(shards: Sequence[Shard]) -> Iterator[Row]:
    """Yield the rows of all shards in the order of the data file, one per shard in memory.

    Raises ValueError, with names, for a row in two shards, and if the number of rows in a file
    differs from its report.
    """
    last: Row | None = None
    seen: Counter[int] = Counter()
    for row in heapq.merge(*map(_rows, shards), key=lambda row: row.number):
        if last is not None and row.number == last.number:
            raise ValueError(
                f"row {row.number} is in {last.shard.generated} and in {row.shard.generated}: the "
                "shards overlap. Generate them with the same --batch-size"
            )
        seen[row.shard.shard] += 1
        yield (last := row)
    for shard in shards:
        reported = shard.totals[0].sentences
        if seen[shard.shard] != reported:
            raise ValueError(
                f"{shard.generated} has {seen[shard.shard]} rows, its report counts {reported}: "
                "generate it again, without --quiet"
            )


def _rows(shard: Shard) -> Iterator[Row]:
    row: Row | None = None
    for line in _lines(shard.generated):
        found = _LINE.match(line)
        if not found:
            continue
        number = int(found[1])
        if row is None or number != row.number:
            if row is not None:
                yield row
                if number < row.number:
                    raise ValueError(
                        f"{shard.generated}: row {number} comes after row {row.number}. Rows of a "
                        "generation are in the order of the data: generate it again"
                    )
            row = Row(number, shard, [])
        row.lines.append(line)
    if row is not None:
        # Without references there is no result after it that would show its end.
        kinds = Counter(line[0] for line in row.lines)
        if not row.lines[-1].endswith("\n") or len({kinds[kind] for kind in "HDP"}) > 1:
            raise ValueError(
                f"{shard.generated} ends within row {row.number}. Generate that shard again"
            )
        yield row


def _lines(path: Path) -> Iterator[str]:
    with regular_file(path).open(encoding="utf-8", newline="\n") as file:
        yield from file

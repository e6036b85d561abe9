"""The files of several shards as those of one generation."""

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.registry import REGISTRIES
from fairseq.scoring import build_scorer

import ofa_exit.plugin  # noqa: F401 (scorers)
from ofa_exit.data.files import atomic_write, locked, sha256_of
from ofa_exit.evaluation.efficiency.shards import Shard, check_shards, merged_rows, read_shard
from ofa_exit.evaluation.efficiency.totals import RunTotals
from ofa_exit.writing import write_errors

_SCORERS = REGISTRIES["scoring"]


def add_scorer_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options of a scorer of texts, or let the parser reject its name.

    fairseq's bleu needs the token ids, which the files do not hold.
    """
    texts = [name for name, cls in _SCORERS["registry"].items() if hasattr(cls, "add_string")]
    if name not in texts:
        parser.error(f"--scoring {name}: choose from {', '.join(sorted(texts))}")
    if name in _SCORERS["dataclass_registry"]:
        gen_parser_from_dataclass(parser, _SCORERS["dataclass_registry"][name]())


def merge(args: argparse.Namespace) -> str:
    """Write OUT and return the result and the report.

    Raises:
        ValueError, OSError: the shards do not form one generation; nothing is written.
    """
    shards = [read_shard(folder) for folder in args.folders]
    check_shards(shards)
    target = args.out / shards[0].generated.name
    scorer = build_scorer(args, None) if args.scoring else None
    report = "\n".join(_reports(shards))
    with contextlib.ExitStack() as stack:
        _claim(target, stack)
        # Files are published in reverse order: the one with the result, which marks the
        # generation as complete, comes last.
        out = stack.enter_context(atomic_write(target))
        log = stack.enter_context(atomic_write(args.out / "log.txt"))
        traces = [_TraceMerger(stack, args.out, shards, name) for name in args.trace]
        for row in merged_rows(shards):
            out.write("".join(row.lines).encode())
            if scorer is not None:
                scorer.add_string(row.text("T"), row.text("D"))
            for trace in traces:
                trace.copy_line(row.shard)
        for trace in traces:
            trace.check_end()
        quality = "not scored" if scorer is None else scorer.result_string()
        result = f"{shards[0].head}: {quality}\n"
        out.write(result.encode())
        log.write(f"{report}\n".encode())
    return f"{result}{report}"


def _claim(target: Path, stack: contextlib.ExitStack) -> None:
    """Lock the folder of a file that does not exist yet. Raise ValueError if that fails."""
    with write_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    # The name that a generation into this folder locks.
    if not stack.enter_context(locked(target.with_name(f".{target.stem}.lock"))):
        raise ValueError(f"{target}: another process writes it. Wait, or give another folder")
    if target.exists():
        raise ValueError(f"{target} exists already: remove it, or give another folder")


def _reports(shards: Sequence[Shard]) -> list[str]:
    """Return each model's report as fairseq-generate prints it."""
    lines, models = [], len(shards[0].totals)
    for number, parts in enumerate(zip(*(shard.totals for shard in shards)), start=1):
        suffix = f" of model {number} of {models}" if models > 1 else ""
        totals = RunTotals.merged(parts)
        lines += [f"Layers and time{suffix}:", totals.table()]
        lines.append(f"Exit summary{suffix}: {json.dumps(totals.summary())}")
    return lines


class _TraceMerger:
    """Merges the shards' trace files line by line."""

    def __init__(
        self, stack: contextlib.ExitStack, out: Path, shards: Sequence[Shard], name: str
    ) -> None:
        self._name = name
        self._check_origin(shards)
        self._files: dict[Path, Any] = {
            shard.folder: stack.enter_context((shard.folder / name).open("rb")) for shard in shards
        }
        self._out = stack.enter_context(atomic_write(out / name))

    def _check_origin(self, shards: Sequence[Shard]) -> None:
        """Raise ValueError unless the files are the traces of one model in these generations."""
        models = set()
        for shard in shards:
            path, known = shard.folder / self._name, [one for one in shard.traces if one]
            digest = sha256_of(path)
            if not known:
                raise ValueError(
                    f"{shard.folder / 'log.txt'} names no trace, so that {path} may be of another "
                    "generation. Generate that shard again with --exit-trace"
                )
            if digest not in known:
                raise ValueError(
                    f"{path} is not the trace that {shard.folder / 'log.txt'} reports: it is of "
                    "another generation or shard, or was changed. Generate that shard again"
                )
            models.add(shard.traces.index(digest))
        if len(models) > 1:
            raise ValueError(f"--trace {self._name}: the files are of different models")

    def copy_line(self, shard: Shard) -> None:
        """Copy the next line of a shard; raise ValueError if it is torn or missing."""
        line = self._files[shard.folder].readline()
        if not line.endswith(b"\n"):
            raise self._misfit(shard.folder)
        self._out.write(line)

    def check_end(self) -> None:
        """Raise ValueError if a shard's file has lines left."""
        for folder, file in self._files.items():
            if file.readline():
                raise self._misfit(folder)

    def _misfit(self, folder: Path) -> ValueError:
        return ValueError(
            f"{folder / self._name} does not have one line for each row of its shard: does it "
            "belong to another generation?"
        )

"""``ofa-exit merge OUT FOLDER…``: the shards of one generation as if it were one run.

Each FOLDER is the --results-path of ``fairseq-generate --num-shards N --shard-id I``, one of its
own for every shard, and holds as log.txt what that printed (``2>&1 | tee FOLDER/log.txt``). OUT
becomes what a single run would have left: generate-SPLIT.txt, scored as a whole, and log.txt with
the report of layers and operations. Only times differ: those of all processes are added.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.registry import REGISTRIES
from fairseq.scoring import build_scorer

import ofa_exit.plugin  # noqa: F401 (scorers)
from ofa_exit.data.files import atomic_write
from ofa_exit.evaluation.efficiency.shards import Shard, check_shards, merged_rows, read_shard
from ofa_exit.evaluation.efficiency.totals import RunTotals

_SCORERS = REGISTRIES["scoring"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ofa-exit merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the whole")
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="results of a shard, in any order"
    )
    # Scorers of words as fairseq has them; its bleu wants the tokens, which the files do not hold.
    texts = [name for name, cls in _SCORERS["registry"].items() if hasattr(cls, "add_string")]
    parser.add_argument(
        "--scoring",
        choices=sorted(texts),
        help="the scorer that the shards were generated with; its own options (--coco-tokenizer, "
        "…) as there. Without it nothing is scored",
    )
    parser.add_argument(
        "--trace",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also merge the --exit-trace files, each shard's FOLDER/NAME",
    )
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, those of the chosen scorer too."""
    parser = build_parser()
    given, _ = parser.parse_known_args(arguments)
    if given.scoring in _SCORERS["dataclass_registry"]:
        gen_parser_from_dataclass(parser, _SCORERS["dataclass_registry"][given.scoring]())
    return parser.parse_args(arguments)


def merge(given: argparse.Namespace) -> str:
    """Writes OUT; returns what it says. Raises ValueError and OSError before anything is kept."""
    shards = [read_shard(folder) for folder in given.folders]
    check_shards(shards)
    target = given.out / shards[0].generated.name
    if target.exists():
        raise ValueError(f"{target} is there already: remove it, or give another folder")
    scorer = build_scorer(given, None) if given.scoring else None
    report = "\n".join(_reports(shards))
    with contextlib.ExitStack() as stack:
        # Left in reverse: the file with the result, which marks the whole as complete, comes last.
        out = stack.enter_context(atomic_write(target))
        log = stack.enter_context(atomic_write(given.out / "log.txt"))
        traces = [_Traces(stack, given.out, shards, name) for name in given.trace]
        for row in merged_rows(shards):
            out.write("".join(row.lines).encode())
            if scorer is not None:
                scorer.add_string(row.text("T"), row.text("D"))
            for trace in traces:
                trace.take(row.shard)
        for trace in traces:
            trace.refuse_rest()
        quality = "not scored" if scorer is None else scorer.result_string()
        result = f"{shards[0].head}: {quality}\n"
        out.write(result.encode())
        log.write(f"{report}\n".encode())
    return f"{result}{report}"


def _reports(shards: Sequence[Shard]) -> list[str]:
    """Each model's report, as fairseq-generate prints it."""
    lines, models = [], len(shards[0].totals)
    for number, parts in enumerate(zip(*(shard.totals for shard in shards)), start=1):
        of = f" of model {number} of {models}" if models > 1 else ""
        totals = RunTotals.merged(parts)
        lines += [f"Layers and time{of}:", totals.table()]
        lines.append(f"Exit summary{of}: {json.dumps(totals.summary())}")
    return lines


class _Traces:
    """The shards' trace files, read line by line into one."""

    def __init__(
        self, stack: contextlib.ExitStack, out: Path, shards: Sequence[Shard], name: str
    ) -> None:
        self._name = name
        self._files: dict[Path, Any] = {
            shard.folder: stack.enter_context((shard.folder / name).open("rb")) for shard in shards
        }
        self._out = stack.enter_context(atomic_write(out / name))

    def take(self, shard: Shard) -> None:
        """The next line of a shard; ValueError where it is torn or not there."""
        line = self._files[shard.folder].readline()
        if not line.endswith(b"\n"):
            raise self._misfit(shard.folder)
        self._out.write(line)

    def refuse_rest(self) -> None:
        for folder, file in self._files.items():
            if file.readline():
                raise self._misfit(folder)

    def _misfit(self, folder: Path) -> ValueError:
        return ValueError(
            f"{folder / self._name} does not have a line for each row of its shard: is it of "
            "another generation?"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    try:
        print(merge(given))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

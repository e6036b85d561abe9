"""Injects faults into the steps of a small experiment. See run.sh, which starts it."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from faults.processes import Disk, Ended, limited, run, run_both
from faults.steps import Step, steps

KINDS = ("moment", "operation", "write")
ROOM = 64 << 20  # bytes of a disk that is large enough
COLUMNS = ("step", "kills", *KINDS, "equal", "full disk", "read-only folder", "two writers")
REASONS = ("No space left on device", "Read-only file system", "File too large", "denied")


class Campaign:
    """The faults of one step, and what came of them."""

    def __init__(self, step: Step, scratch: Path, chance: random.Random) -> None:
        self.step, self.scratch, self.chance = step, scratch / step.name, chance
        self.scratch.mkdir()
        self.problems: list[str] = []
        out = self.scratch / "uninterrupted"
        self.ended = self._run(out)
        if self.ended.status:
            raise SystemExit(f"{step.name} fails without a fault:\n{self.ended.output[-3000:]}")
        self.expected = step.contents(out)
        self.bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        self.killed: Counter[str] = Counter()
        self.equal = self.kills = 0

    def _run(self, out: Path, **fault: Any) -> Ended:
        return run(lambda: self.step.run(out), out, **fault)

    def _problem(self, fault: str, what: str, ended: Ended | None = None) -> None:
        self.problems.append(f"{self.step.name}, {fault}: {what}")
        if ended is not None:
            self.problems.append("  " + "\n  ".join(ended.output.splitlines()[-6:]))

    def kill(self, number: int) -> None:
        """Kill the step at a random point, resume it, and compare."""
        kind = KINDS[number % len(KINDS)]
        fault: dict[str, Any] = {}
        if kind == "moment":
            fault["at_seconds"] = self.chance.random() * self.ended.seconds
        else:
            fault["before_operation"] = self.chance.randint(1, self.ended.operations)
        if kind == "write":  # most files are much smaller than the largest
            fault["limit"] = int(self.bytes ** self.chance.random())
        out = self.scratch / f"killed{number}"
        ended = self._run(out, **fault)
        self.kills += 1
        self.killed[kind] += ended.status < 0
        name = f"kill {number} ({fault})"
        self._check_partial(out, name)
        if self._is_resumed(out, name):
            self.equal += 1
        shutil.rmtree(out, ignore_errors=True)

    def _check_partial(self, out: Path, fault: str) -> None:
        """Whatever looks whole after a fault is whole."""
        try:
            names = self.step.looks_whole(out)
            found = self.step.contents(out) if names else {}
            for name in names:
                if found[name] != self.expected[name]:
                    self._problem(fault, f"{name} looks whole and is not")
        except (ValueError, OSError) as error:
            self._problem(fault, f"{error}")

    def _is_resumed(self, out: Path, fault: str, again: bool = True) -> bool:
        """Run the step again, without a fault; return whether all is as if there had been none."""
        ended = self._run(out) if again else None
        if ended is not None and ended.status:
            self._problem(fault, f"the same command fails with status {ended.status}", ended)
            return False
        try:
            found = self.step.contents(out)
        except (ValueError, OSError) as error:
            self._problem(fault, f"{error}")
            return False
        different = {
            name
            for name in {*found, *self.expected}
            if (name in found) != (name in self.expected) or found[name] != self.expected[name]
        }
        if different:
            self._problem(fault, f"{', '.join(sorted(different))} differ from the whole run")
        return not different

    def fill(self) -> str:
        """Run the step on a disk that is too small, then with room; return the table's cell."""
        disk = Disk(self.scratch / "disk")
        disk.mount(max(4096, int(self.bytes * self.chance.uniform(0.2, 0.8)) // 4096 * 4096))
        out = disk.path / "out"
        if disk.is_mounted:
            ended = self._run(out)
        else:
            # The largest file of a step does not fit.
            sizes = [path.stat().st_size for path in self._files()]
            ended = run(limited(lambda: self.step.run(out), max(sizes) // 2), out)
        cell = self._fault_cell("full disk", out, ended)
        has_room = not disk.is_mounted or disk.has(f"size={ROOM}")
        if has_room and not self._is_resumed(out, "full disk"):
            cell = "FAILED"
        disk.unmount()
        return cell if disk.is_mounted else f"{cell} (file size limit)"

    def _files(self) -> list[Path]:
        folder = self.scratch / "uninterrupted"
        return [path for path in folder.rglob("*") if path.is_file()]

    def forbid(self) -> str:
        """Run the step in a read-only folder; return the table's cell."""
        disk = Disk(self.scratch / "read-only")
        disk.mount(ROOM)
        out = disk.path / "out"
        out.mkdir()
        if not self.step.needs_folder:  # its input has to be there
            (out / "rows.tsv").symlink_to(self.scratch.parent / "indexed" / "rows.tsv")
        before = len(list(out.rglob("*")))
        if not disk.has("ro"):
            if os.geteuid() == 0:  # may write everywhere
                return "not tested"
            out.chmod(0o555)
        ended = self._run(out)
        cell = self._fault_cell("read-only folder", out, ended)
        if len(list(out.rglob("*"))) != before:
            self._problem("read-only folder", "something was written", ended)
            cell = "FAILED"
        disk.unmount()
        return cell

    def compete(self) -> str:
        """Run the step twice at once in one folder; return the table's cell."""
        out, fault = self.scratch / "both", "two writers"
        before = len(self.problems)
        ended = sorted(run_both(lambda: self.step.run(out), out), key=lambda one: one.status)
        if ended[0].status != 0:
            self._problem(fault, "none of the two ends well", ended[0])
        for one in ended:
            if one.status not in (0, 2) or "Traceback" in one.output:
                self._problem(fault, f"exit status {one.status}", one)
        if ended[1].status and not _has_line(ended[1].output, str(out), ("another", "exists")):
            self._problem(fault, "no line that names the folder and the reason", ended[1])
        self._is_resumed(out, fault, again=ended[0].status != 0)
        if len(self.problems) > before:
            return "FAILED"
        return "one is rejected" if ended[1].status else "both end well"

    def _fault_cell(self, fault: str, out: Path, ended: Ended) -> str:
        before = len(self.problems)
        self._check_partial(out, fault)
        if "Traceback" in ended.output:
            self._problem(fault, "a traceback", ended)
        if self.step.needs_folder and not _has_line(ended.output, str(out), REASONS):
            self._problem(fault, "no line that names the file and the reason", ended)
        if ended.status < 0 or (ended.status == 0) == self.step.needs_folder:
            self._problem(fault, f"exit status {ended.status}", ended)
        if len(self.problems) > before:
            return "FAILED"
        return "one line" if self.step.needs_folder else "runs without"

    def row(self, *faults: str) -> tuple[str, ...]:
        kinds = [str(self.killed[kind]) for kind in KINDS]
        killed = f"{sum(self.killed.values())} of {self.kills}"
        equal = f"{self.equal} of {self.kills}"
        return self.step.name, killed, *kinds, equal, *faults


def _has_line(output: str, path: str, reasons: tuple[str, ...]) -> bool:
    """Return whether a line holds the path and one of the reasons."""
    lines = [line for line in output.splitlines() if path in line or "standard output" in line]
    return any(reason in line for line in lines for reason in reasons)


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for number, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if number == 0:
            print("| " + " | ".join("-" * width for width in widths) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/faults/run.sh", add_help=False)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", default="")
    args = parser.parse_args()
    chosen = [name for name in args.steps.split(",") if name]
    table, problems = [COLUMNS], []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        inputs, *all_steps = steps(Path(folder))
        unknown = set(chosen) - {step.name for step in all_steps}
        if unknown:
            parser.error(f"--steps {', '.join(sorted(unknown))}: no such step. See --help")
        ended = run(lambda: inputs.run(Path(folder)), Path(folder))
        if ended.status:
            raise SystemExit(f"the inputs cannot be made:\n{ended.output[-3000:]}")
        wanted = [step for step in all_steps if not chosen or step.name in chosen]
        for number, step in enumerate(wanted):
            campaign = Campaign(step, Path(folder), random.Random(f"{args.seed} {step.name}"))
            for kill in range(number, args.kills, len(wanted)):
                campaign.kill(kill // len(wanted))
            table.append(campaign.row(campaign.fill(), campaign.forbid(), campaign.compete()))
            problems += campaign.problems
            seconds = f"{campaign.ended.seconds:.1f} s"
            print(*table[-1], seconds, *campaign.problems, sep=" | ", file=sys.stderr, flush=True)
    print_table(table)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

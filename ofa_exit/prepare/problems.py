"""FILE.problems.txt: all problems of a preparation, one per line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import IO

from ofa_exit.data.files import atomic_write, remove_leftovers

from .records import PrepareError, Problem

_PROBLEMS_SHOWN = 10


class Problems:
    """Collects problems. Memory: the first ones, which messages show.

    The file is complete when the block ends, also with a PrepareError, whose message names the
    file. An interrupted block keeps the file of an earlier run. Without problems that file is
    removed.
    """

    def __init__(self, path: Path):
        self.path = path.with_name(path.name + ".problems.txt")
        self._first: list[Problem] = []
        self._count = 0
        self._stack = contextlib.ExitStack()
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, problem: Problem) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self.path))
        line = " ".join(f"{problem}".splitlines())
        self._file.write(line.encode(errors="backslashreplace") + b"\n")
        self._count += 1
        if self._count <= _PROBLEMS_SHOWN:
            self._first.append(problem)

    def shown(self) -> str:
        """Return the first problems, one per line, and the file of all; "" if there are none."""
        if not self._count:
            return ""
        lines = [f"\n  {problem}" for problem in self._first]
        more = self._count - len(self._first)
        if more:
            lines.append(f"\n  and {more:,} more")
        return "".join([*lines, f"\nAll are listed in {self.path}"])

    def __enter__(self) -> Problems:
        remove_leftovers(self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, PrepareError):
            self._stack.__exit__(kind, error, trace)
            return
        self._stack.close()
        if not self._count:
            self.path.unlink(missing_ok=True)

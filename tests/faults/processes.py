"""Steps in forked processes: they start in no time, and can be killed at a chosen point."""

from __future__ import annotations

import atexit
import mmap
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Ended:
    """A process that ended.

    Args:
        status: exit status, negative for a signal.
        seconds: CPU time.
        operations: operations on files of the watched folder.
    """

    status: int
    output: str
    seconds: float
    operations: int


def run(
    step: Callable[[], int | None],
    folder: Path,
    *,
    before_operation: int = 0,
    limit: int | None = None,
    at_seconds: float | None = None,
) -> Ended:
    """Run a step in a process of its own, and wait for it.

    Args:
        folder: its operations on files below this folder are counted.
        before_operation: kill it before its n-th operation; 0 never.
        limit: with ``before_operation``, let the operation pass, and kill the process when a file
            grows beyond this number of bytes.
        at_seconds: kill it when it has used that much CPU time.
    """
    with _Running(step, folder, before_operation, limit) as running:
        while running.reads(0.005):
            if at_seconds is not None and _cpu_seconds(running.pid) >= at_seconds:
                os.kill(running.pid, signal.SIGKILL)
        return running.wait()


def run_both(step: Callable[[], int | None], folder: Path) -> list[Ended]:
    """Run a step twice at the same time."""
    with _Running(step, folder) as first, _Running(step, folder) as second:
        both = [first, second]
        while [running for running in both if running.reads(0.005)]:
            pass
        return [running.wait() for running in both]


class _Running:
    """A forked process that runs a step, and what it prints."""

    def __init__(
        self,
        step: Callable[[], int | None],
        folder: Path,
        before_operation: int = 0,
        limit: int | None = None,
    ) -> None:
        self._counter = mmap.mmap(-1, 8)  # shared with the process
        self._reader, writer = os.pipe()
        self._output = b""
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            # Those of pytest write elsewhere.
            sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # noqa: SIM115
            atexit._clear()  # those of this process, such as the removal of temporary folders
            sys.addaudithook(_watch(str(folder), self._counter, before_operation, limit))
            _run_and_exit(step)
        os.close(writer)

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._reader)

    def reads(self, seconds: float) -> bool:
        """Read what it printed, waiting so long; return whether it may print more."""
        if select.select([self._reader], [], [], seconds)[0]:
            block = os.read(self._reader, 1 << 16)
            self._output += block
            return bool(block)
        return True

    def wait(self) -> Ended:
        _, status, usage = os.wait4(self.pid, 0)
        return Ended(
            os.waitstatus_to_exitcode(status),
            self._output.decode(errors="replace"),
            usage.ru_utime + usage.ru_stime,
            int.from_bytes(self._counter[:8], "little"),
        )


def _run_and_exit(step: Callable[[], int | None]) -> None:
    """Run a step and end the process as Python ends a command."""
    code: object = 1
    try:
        code = step() or 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _watch(
    folder: str, counter: mmap.mmap, before_operation: int, limit: int | None
) -> Callable[[str, tuple], None]:
    def hook(event: str, arguments: tuple) -> None:
        is_change = event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITING)
        if not is_change or not str(arguments[0]).startswith(folder):
            return
        number = int.from_bytes(counter[:8], "little") + 1
        counter[:8] = number.to_bytes(8, "little")
        if number != before_operation:
            return
        if limit is None:
            os.kill(os.getpid(), signal.SIGKILL)
        # The kernel itself ends the process in the middle of a write.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return hook


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


class Disk:
    """A small disk at ``path``: a tmpfs, or limits where none can be mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_mounted = False
        path.mkdir(parents=True)

    def mount(self, size: int) -> None:
        self.is_mounted = self._command(f"mount -t tmpfs -o size={size} faults")

    def has(self, option: str) -> bool:
        """Remount with an option (``ro``, ``size=…``)."""
        return self.is_mounted and self._command(f"mount -o remount,{option}")

    def unmount(self) -> None:
        if self.is_mounted:
            self._command("umount")

    def _command(self, command: str) -> bool:
        return os.system(f"{command} '{self.path}' 2> /dev/null") == 0


def limited(step: Callable[[], int | None], size: int) -> Callable[[], int | None]:
    """Return a step whose files cannot grow beyond ``size`` bytes, as on a full disk."""

    def run_limited() -> int | None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return step()

    return run_limited

"""A disk that is full, and another process that holds a lock."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from ofa_exit.data.files import hold_lock
print(hold_lock(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes; the system reports it as it reports a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def held_elsewhere(path: Path) -> Iterator[None]:
    """Another process holds the lock of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "True\n"
        yield
        other.communicate()

"""Damaged inputs drawn by a fixed seed, and what a call may do with them."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from ofa_exit.cli.main import main
from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError

SECONDS, BYTES = 20, 4 << 30  # for one input; more memory would end other processes
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1}
PLACES = 10**6  # parts of a file that an edit may name
DEEP = "[" * 100_000
# What is read where something else is expected.
TEXTS = (
    *("", " ", "word", "0", "-1", "1e999", "nan", "inf", "-inf", "1_0", "٣", "²", "0x1", "1,2,3"),
    *("a\tb", "a\nb", "a\r", "\0", "\x1b[2K", "\x0b\x1c\x85\u2028", "\ufeff", "\u202e", "é" * 9),
    *("&&", "1.0|!+", "|!+", "<person>", "{}", "[", "null", "./pipe.png", "./photo.png", "."),
    *("../..", "/dev/./zero", "no.png", "%s%n{0}", "'\"\\", "x" * 200_000, "&&" * 9_000),
)
VALUES = (
    *(None, True, False, 0, -1, 1, 2.5, 1e308, 10**400, float("nan"), float("inf"), [], {}),
    *([[]], [None], {"a": 1}, {"": None}, ["x", 1], "\ud800", *TEXTS),
)


def fuzz(inputs: int) -> settings:
    """Return a decorator for a test of that many inputs, the same in every run.

    FUZZ_TIMES=10 draws ten times as many.
    """
    return settings(
        max_examples=inputs * int(os.environ.get("FUZZ_TIMES", "1")),
        derandomize=True,
        database=None,
        deadline=None,  # `contained` has its own
        print_blob=False,
        phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes where an input does 1 s
        suppress_health_check=list(HealthCheck),
    )


# ------------------------------------------------------------------ damaged inputs

KINDS = ("flip", "cut", "empty", "delete", "insert", "zeros", "repeat", "append")
BYTE_EDITS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, PLACES), st.integers(1, 255)),
    min_size=1,
    max_size=3,
)
FLIPS = st.lists(
    st.tuples(st.just("flip"), st.integers(0, PLACES), st.integers(1, 255)), min_size=1, max_size=2
)
CUTS = st.tuples(st.just("cut"), st.integers(0, PLACES - 1), st.just(0)).map(lambda one: [one])


def damaged(content: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """Return bytes with flipped, missing, new, zeroed or repeated parts."""
    for kind, place, value in edits:
        at = place * len(content) // PLACES
        before, after = content[:at], content[at:]
        if kind == "flip" and after:
            content = before + bytes([after[0] ^ value]) + after[1:]
        elif kind == "delete":
            content = before + after[value:]
        elif kind == "zeros":
            content = before + bytes(min(value, len(after))) + after[value:]
        elif kind == "append":
            content += bytes([value]) * value
        else:
            new = {"insert": bytes([value, 0, value]), "repeat": before[-value:]}.get(kind)
            content = b"" if kind == "empty" else before if new is None else before + new + after
    return content


JSON_EDITS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 50), min_size=1, max_size=7),
        st.sampled_from(("replace", "replace", "delete", "twice", "rename")),
        st.sampled_from(VALUES),
    ),
    min_size=1,
    max_size=3,
)


def changed(value: Any, edits: list[tuple[list[int], str, Any]]) -> Any:
    """Return a JSON value with replaced, missing, repeated or renamed parts."""
    value = copy.deepcopy(value)
    for path, kind, shared in edits:
        new = copy.deepcopy(shared)
        holder, here = value, value
        key: Any = None
        for step in path:
            if not isinstance(here, (dict, list)) or not here:
                break
            key = list(here)[step % len(here)] if isinstance(here, dict) else step % len(here)
            holder, here = here, here[key]
        if key is None or kind == "replace":
            if key is None:
                return new
            holder[key] = new
        elif kind == "delete":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(here))
        else:
            holder[f"{new}"[:50]] = holder.pop(key) if kind == "rename" else here
    return value


# ------------------------------------------------------------------ what may happen


class TooSlowError(BaseException):
    """No ``except Exception`` swallows it."""


_watched: list[tuple[Path, list[str]]] = []
_hooked: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or (event != "open" and event not in CHANGES):
        return
    if event == "open":
        is_write = isinstance(arguments[2], int) and arguments[2] & WRITING
        paths = arguments[:1] if is_write else ()
    else:
        paths = arguments[: CHANGES[event]]
    folder, outside = _watched[-1]
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):
            text = os.path.realpath(os.fsdecode(path))
            ignored = text == os.devnull or "__pycache__" in text
            if not ignored and not f"{text}{os.sep}".startswith(f"{folder}{os.sep}"):
                outside.append(f"{event} {text}")


@contextlib.contextmanager
def contained(folder: Path) -> Iterator[None]:
    """Fail if the block takes over 20 s or 4 GB, or changes a file outside ``folder``."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)

    def stop(*_: Any) -> None:
        raise TooSlowError(f"over {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    outside: list[str] = []
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, limits[1]))
    try:
        with contextlib.chdir(folder):
            _watched.append((folder.resolve(), outside))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        _watched.pop()
    assert not outside, outside


@contextlib.contextmanager
def folder_for_one(parent: Path) -> Iterator[Path]:
    """Give a folder for one input, with a photo and a pipe in it, and remove it."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    os.mkfifo(folder / "pipe.png")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def attempt(
    folder: Path, name: str, call: Callable[[], Any], kind: type[Exception] | None = None
) -> Any:
    """Return what a call gives; None if it ends in an own error on one line that has ``name``.

    Args:
        kind: of errors, which the commands print on one line (default: those of rows and options).
    """
    try:
        with contained(folder):
            return call()
    except Exception as error:
        if not isinstance(error, kind or (UsageError, TsvError)):
            raise
        check_line(str(error), name)
        return None


def check_line(text: str, name: str) -> None:
    """Check that a message is one line that has ``name``."""
    assert name in text, text[:500]
    assert "\n" not in text and "\r" not in text, text[:500]


def run_verb(folder: Path, name: str, *arguments: str) -> tuple[int, str]:
    """Run a verb of ofa-exit; its status and what it printed.

    Status 2 comes with one error on stderr, which has ``name``.
    """
    # As on a terminal: half of a surrogate pair cannot be printed.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", e) for e in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contained(folder):
        try:
            status = main(list(arguments))
        except SystemExit as error:
            status = error.code
    for stream in (out, err):
        stream.flush()
    printed, errors = (s.buffer.getvalue().decode() for s in (out, err))
    assert status in (0, 1, 2), status
    assert "Traceback" not in printed + errors
    if status == 2:
        before, mark, message = errors.rpartition(f"ofa-exit {arguments[0]}: error: ")
        assert mark and "error: " not in before, errors[:2_000]
        if arguments[0] == "prepare":  # which lists records below its line
            message = message.partition("\n")[0]
        check_line(message.removesuffix("\n"), name)
    return status, printed

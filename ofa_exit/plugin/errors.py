"""Errors of the command line's making are told in one line, as argparse tells its own."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Optional

from ofa_exit.data.tsv import TsvError


class UsageError(ValueError):
    """What the user gave cannot be followed; the message says what to give instead."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """ValueError and OSError from within become UsageError; also a decorator.

    For code that looks at options and files before anything is computed: there, both are the
    user's to mend.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, (UsageError, TsvError)):
            raise
        raise UsageError(str(error)) from error


@functools.cache  # once a process
def tell_in_a_line() -> None:
    """Make a command that ends by UsageError or TsvError print a line and exit with status 2.

    By Python's ``sys.excepthook``: whoever catches the errors notices nothing, and all others
    keep their traceback. Processes that torch spawns, and hydra, print what they catch themselves.
    """
    original = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: Optional[TracebackType]
    ) -> None:
        if not isinstance(error, (UsageError, TsvError)):
            original(kind, error, trace)
            return
        # A data-loading worker's error comes with the traceback of the worker before it.
        text = str(error).rpartition(f"{TsvError.__name__}: ")[2].strip()
        sys.stdout.flush()
        # Between processes torch has a hook around this one, which takes sys.stderr for itself.
        stderr = sys.__stderr__ or sys.stderr
        print(f"{os.path.basename(sys.argv[0])}: error: {text}", file=stderr, flush=True)
        raise SystemExit(2)

    sys.excepthook = excepthook

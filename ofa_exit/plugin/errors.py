"""Errors of the command line and of data files, printed on one line as argparse prints its own."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator

from ofa_exit.writing import WriteError


class UsageError(ValueError, SystemExit):
    """Invalid options, files or rows. The message says what to give instead.

    Uncaught, it ends the process like an error of argparse: one line on stderr, exit status 2, no
    traceback. As a ValueError, ``except Exception`` catches it. Processes that torch spawns and
    hydra catch it, and print their own traceback.

    It stands in for a ``try`` around the ``main`` of fairseq's commands, which are not ours to
    change, and for ``sys.excepthook``, which torch replaces. Python ends on an uncaught SystemExit
    by reading its ``code``, so the first read prints the message.
    """

    @functools.cached_property
    def code(self) -> int:  # type: ignore[override]
        """Exit status 2, once the message is printed."""
        # The message of an error in a data-loading worker begins with the worker's traceback.
        text = str(self).rpartition(f"{UsageError.__name__}: ")[2].strip()
        sys.stdout.flush()
        print(f"{os.path.basename(sys.argv[0])}: error: {text}", file=sys.stderr, flush=True)
        return 2


class PredictionError(ValueError):
    """Invalid options, images or files of the Python API.

    Unlike a UsageError it does not end an interactive session.
    """


@contextlib.contextmanager
def prediction_errors() -> Iterator[None]:
    """Turn ValueError and OSError into PredictionError, for code that checks options and files."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, PredictionError):
            raise
        raise PredictionError(str(error)) from error


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn ValueError and OSError into UsageError; also a decorator.

    For code that checks options and files before anything is computed.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def unwritten_errors() -> Iterator[None]:
    """Turn a file that cannot be written to its end into a UsageError; other errors pass."""
    try:
        yield
    except WriteError as error:
        raise UsageError(str(error)) from error

"""Repair how fairseq 0.12 writes ``--results-path``. Importing this module applies all repairs.

1. Two generations into one file mix their lines. The second is rejected.
2. A full disk ends in tracebacks, of ``logging`` too, which writes into the same file. It is
   reported on one line, as is a folder that is read-only. Lines that are still in a buffer at the
   end count, too, and so does standard output.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, TextIO

import fairseq_cli.generate

from ofa_exit.data.files import locked
from ofa_exit.plugin.compat import patch
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.writing import FULL, REMEDY, WriteError, write_errors


@patch(fairseq_cli.generate, "main")
def one_generation_per_file(generate: Callable, cfg: Any) -> Any:
    folder = getattr(cfg, "common_eval", cfg).results_path
    if folder is None:
        return generate(cfg)
    name = f"generate-{getattr(cfg, 'dataset', cfg).gen_subset}"
    path = Path(folder, f"{name}.txt")
    with usage_errors(), write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{name}.lock")) as is_alone:
        if not is_alone:
            raise UsageError(
                f"--results-path {folder}: another generation writes {path.name} there. Wait for "
                "it, or give another folder"
            )
        try:
            return generate(cfg)
        except OSError as error:
            if error.filename != str(path):
                raise
            raise UsageError(str(WriteError(path, error))) from error


@patch(fairseq_cli.generate, "_main")
def write_to_the_end(generate: Callable, cfg: Any, output_file: TextIO) -> Any:
    prints_errors, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        scorer = generate(cfg, output_file)
        output_file.flush()
        sys.stdout.flush()
        if output_file is not sys.stdout:
            os.fsync(output_file.fileno())  # some file systems report a full disk only here
        return scorer
    except BaseException as error:
        full = [_name_if_full(file) for file in (output_file, sys.stdout)]
        named = next(filter(None, full), None)
        if named is None and _is_of_unnamed_file(error):
            _discard(sys.stdout)  # unbuffered: the other file is not
            named = "standard output"
        if isinstance(error, OSError) and named:
            raise UsageError(f"{named} cannot be written: {error.strerror}. {REMEDY}") from error
        raise
    finally:
        logging.raiseExceptions = prints_errors


def _is_of_unnamed_file(error: BaseException) -> bool:
    """Return whether an error is one of writing to an open file."""
    is_unnamed = isinstance(error, OSError) and error.filename is None
    return is_unnamed and error.errno in {*FULL, errno.EPIPE}  # type: ignore[attr-defined]


def _name_if_full(file: TextIO) -> Optional[str]:
    """Return the name of a file that cannot be written to its end, None if it can be."""
    try:
        file.flush()
    except OSError:
        _discard(file)
        return "standard output" if file is sys.stdout else file.name
    return None


def _discard(file: TextIO) -> None:
    """Discard the rest: closing the file would raise another error and hide the first one."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, file.fileno())
        os.close(null)

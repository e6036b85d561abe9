"""Write rows to a TSV file atomically, with resume.

Rows go to FILE.partial, with the inputs they are made from in FILE.partial.json. A run over the
same inputs keeps the rows of the partial file that match their records. It truncates the file after
the last of them (a torn last row, blocks lost in a power cut) and continues from there.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from ofa_exit.data.row_index import Stamp, write_index
from ofa_exit.regular_files import regular_file
from ofa_exit.writing import FULL, WriteError, write_errors

from .images import BrokenImageError, Files, encode_image, encoded_length, read_encoded
from .manifest import read_json, write_json
from .problems import Problems
from .records import Item, PrepareError, Problem, Record


@dataclass
class Written:
    """The rows of a file; the first ``kept`` of them came from an earlier run.

    ``offsets``: bytes, the start of each row, then the end of the last one.
    """

    kept: int = 0
    offsets: array = field(default_factory=lambda: array("q", [0]))
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def size(self) -> int:
        return self.offsets[-1]

    def add(self, row: bytes) -> None:
        self.offsets.append(self.size + len(row))
        self.digest.update(row)


def partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _inputs_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial.json")


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial.lock")


def check_files(path: Path) -> None:
    """Raise PrepareError if ``path`` or a file beside it is there and no regular file.

    Renaming would replace a pipe or a device, and reading one may never end.
    """
    if _lock_path(path).is_symlink():
        raise PrepareError(f"{_lock_path(path)} is a link. Remove it")
    names = (path.name + ending for ending in ("", ".partial", ".partial.lock", ".problems.txt"))
    for file in map(path.with_name, names):
        try:
            regular_file(file)
        except FileNotFoundError:
            continue
        except PermissionError:
            raise
        except OSError as error:
            raise PrepareError(
                f"{file} cannot be written: {error.strerror}. Remove it, or choose another folder"
            ) from error


def partial_inputs(path: Path) -> dict[str, Any] | None:
    """Return the inputs of the partial file of ``path``, {} if unknown, None if there is none."""
    return read_json(_inputs_path(path)) or {} if partial_path(path).exists() else None


def write_rows(
    path: Path,
    inputs: dict[str, Any],
    items: Iterable[Item],
    files: Files,
    problems: Problems,
    *,
    skip_broken: bool,
    advance: Callable[[], object] = lambda: None,
) -> Written:
    """Write or resume ``path``'s partial file within `locked`; `publish` moves it into place.

    Memory: a few images, and one number per row.

    Args:
        items: records without an image are skipped, because the caller has reported them.
        problems: receives the broken images.
        skip_broken: leave out rows with a broken image. Otherwise nothing is written after the
            first one, but all further images are read, so that one run reports every broken one.
        advance: called after each row.
    """
    written = Written()
    is_complete = True
    with partial_path(path).open("a+b") as file:
        if partial_inputs(path) != inputs:
            file.truncate(0)
            write_json(_inputs_path(path), inputs)
        file.seek(0)
        earlier = file.readline()  # the next row of an earlier run, b"" after its last
        for record, image in _with_images(items, files):
            if earlier and holds(earlier, record, image):
                written.add(earlier)
                written.kept += 1
                earlier = file.readline()
                advance()
                continue
            # No row of this record: its image was broken, or the earlier run ended here.
            try:
                encoded = encode_image(image)
            except BrokenImageError as error:
                problem = Problem(image.name, record.id, str(error))
                problems.add(problem)
                if is_complete and not skip_broken:
                    is_complete = False
                    tqdm.write(f"{problem}\nReading the other images to find all", sys.stderr)
                continue
            if earlier:
                file.truncate(written.size)
                earlier = b""
            if is_complete:
                row = _row(record, encoded)
                file.write(row)
                written.add(row)
            advance()
        file.flush()
        file.truncate(written.size)
        os.fsync(file.fileno())
    return written


def publish(path: Path, written: Written) -> None:
    """Move the finished partial file to ``path``, its index first."""
    with suppress(OSError):  # a reader writes the index where it is missing
        stamp = Stamp.from_stat(partial_path(path).stat())
        write_index(path, stamp, np.asarray(written.offsets))
    os.replace(partial_path(path), path)
    remove_inputs(path)


def remove_inputs(path: Path) -> None:
    """Remove what was noted for resuming a file that is finished, if it is there."""
    _inputs_path(path).unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Admit one process to write ``path``, from its first row until it is published.

    Raises:
        PrepareError: another process writes it.
    """
    is_new_folder = not path.parent.exists()
    with write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = _lock_path(path)
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PrepareError(
            f"{partial_path(path)} is being written by another run. Wait for it, or end it"
        ) from None
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:  # those of writing name no file
            raise WriteError(partial_path(path), error) from error
        raise
    finally:
        lock_path.unlink(missing_ok=True)
        lock.release()
        if is_new_folder:
            with suppress(OSError):  # it has files
                path.parent.rmdir()


def _with_images(items: Iterable[Item], files: Files) -> Iterator[tuple[Record, Path]]:
    for item in items:
        if isinstance(item, Record):
            image = files.image(item.image_names)
            if image is not None:
                yield item, image


def _row(record: Record, encoded: str) -> bytes:
    fields = [encoded if column is None else column for column in record.columns]
    return ("\t".join(fields) + "\n").encode("utf-8")


def holds(row: bytes, record: Record, image: Path) -> bool:
    """Return whether ``row`` is the complete row of ``record`` with the bytes of ``image``."""
    if len(row) != len(_row(record, "")) + encoded_length(image):
        return False
    try:
        return row == _row(record, read_encoded(image))
    except OSError:
        return False

"""The folder of ``--save-dir``: whole files only, one training at a time."""

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ofa_exit.data.files import hold_lock
from ofa_exit.models.checkpoint_file import DamagedFileError, read_checkpoint
from ofa_exit.plugin.errors import UsageError

LAST_CHECKPOINT = "checkpoint_last.pt"  # fairseq's default of --restore-file
LOCK = ".ofa-exit{}.lock"  # with the checkpoint suffix
# fairseq's names of the checkpoints of one training, between "checkpoint" and the suffix.
KINDS = r"(\d+|_\d+_\d+|_best|\.best_.+_\d+\.\d+)"


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """Open ``path``.tmp, write it to the disk and rename it to ``path`` when the block succeeds.

    Raises:
        UsageError: the disk is full, or the file cannot be written. ``path`` stays as it was.
    """
    partial = f"{path}.tmp"
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        # torch.save replaces the error of the file by one of its own, that the archive is cut off.
        reason = error if isinstance(error, OSError) else error.__context__
        if isinstance(reason, OSError):
            raise UsageError(
                f"{path} cannot be written: {reason.strerror}. Make room, or allow writing, and "
                "run the same command again: it resumes from the last whole checkpoint"
            ) from error
        raise


def whole_checkpoint(last: str) -> str:
    """Return ``last``, or the newest whole checkpoint beside it if its end is missing.

    Reads no weights of ``last``, whose checksums are compared when training loads them.

    Raises:
        ValueError: no checkpoint is whole.
    """
    try:
        read_checkpoint(last, weights=False)
    except DamagedFileError as damage:
        return newest_whole_checkpoint(last, damage)
    except (ValueError, OSError):
        pass  # reported by those who read it
    return last


def newest_whole_checkpoint(last: str, damage: Exception) -> str:
    """Return the checkpoint of most updates in the folder of a damaged ``checkpoint_last.pt``.

    Every byte is checked. Checkpoints of other suffixes (shards, ranks) are left out.

    Args:
        damage: what is wrong with ``last``.

    Raises:
        ValueError: none is whole.
    """
    folder, name = os.path.split(last)
    suffix = name.removeprefix("checkpoint_last").removesuffix(".pt")
    pattern = re.compile(rf"checkpoint{KINDS}{re.escape(suffix)}\.pt")
    found = []
    for other in filter(pattern.fullmatch, sorted(os.listdir(folder or "."))):
        path = os.path.join(folder, other)
        with contextlib.suppress(ValueError, OSError, LookupError, TypeError):
            state = read_checkpoint(path, weights=False)
            found.append((int(state["optimizer_history"][-1]["num_updates"]), path))
    for _, path in sorted(found, reverse=True):
        with contextlib.suppress(ValueError, OSError):
            read_checkpoint(path)
            return path
    raise ValueError(
        f"{damage}, or remove it to start over: no other checkpoint in {folder or '.'} is whole"
    )


def hold_save_folder(save_dir: str, suffix: str) -> None:
    """Lock ``save_dir`` until this process ends, and remove partial files of killed trainings.

    Args:
        suffix: ``--checkpoint-suffix``; processes that save shards have one each.

    Raises:
        UsageError: another process trains into ``save_dir``.
    """
    if not hold_lock(Path(save_dir) / LOCK.format(suffix)):
        raise UsageError(
            f"--save-dir {save_dir}: another training writes its checkpoints there. Wait for it, "
            "end it, or give another folder"
        )
    for leftover in glob.glob(f"{glob.escape(save_dir)}/checkpoint*{glob.escape(suffix)}.pt.tmp"):
        with contextlib.suppress(OSError):
            os.unlink(leftover)

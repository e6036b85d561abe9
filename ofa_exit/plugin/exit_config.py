"""Files of ``ofa-exit calibrate``: exit options with a certificate, for ``--exit-config``."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from ofa_exit.data.files import sha256_of, write_bytes
from ofa_exit.policies.base import Origin
from ofa_exit.regular_files import regular_file

logger = logging.getLogger(__name__)

FORMAT = 1
PARTS = ("exits", "certificate", "checkpoint", "task", "data")
HEAD_BYTES = 1 << 20
_SHARES = ("keep", "confidence", "bound", "p_value", "mean_loss")
_COUNTS = ("rows", "path_rows")
AGAIN = "Run ofa-exit calibrate again"


@dataclass(frozen=True)
class ExitConfig:
    """What ``ofa-exit calibrate`` writes.

    Attributes:
        exits: options as in a sweep's grid, ``exit_policy`` among them; "none" for full depth.
        certificate: metric, keep, confidence, rows, bound, p_value, mean_loss, …
        checkpoint: name of the file and SHA-256 of its content.
        task: kind of task, and the options that decide what the model reads.
        data: name, size, and SHA-256 of the first bytes of the file that was calibrated on.
    """

    exits: dict[str, Any]
    certificate: dict[str, Any]
    checkpoint: dict[str, Any]
    task: dict[str, Any]
    data: dict[str, Any]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all parts."""
        text = json.dumps([getattr(self, part) for part in PARTS], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        parts = {part: getattr(self, part) for part in PARTS}
        saved = {"format": FORMAT, **parts, "digest": self.digest}
        write_bytes(path, f"{json.dumps(saved, indent=2, ensure_ascii=False)}\n".encode())


def read_exit_config(path: str) -> ExitConfig:
    """Read a file of ``ofa-exit calibrate``.

    Raises:
        ValueError: it is missing, is no such file, or was edited.
    """
    try:
        saved = json.loads(regular_file(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--exit-config {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--exit-config {path} is not JSON ({error}). {AGAIN}") from error
    problem = _problem(saved)
    if problem:
        raise ValueError(f"--exit-config {path}: {problem}. {AGAIN}")
    config = ExitConfig(**{part: saved[part] for part in PARTS})
    if saved.get("digest") != config.digest:
        raise ValueError(
            f"--exit-config {path} was edited, so that its certificate does not hold. {AGAIN}, or "
            "give its thresholds as options, which promise nothing"
        )
    return config


def _problem(saved: Any) -> Optional[str]:
    """Return what makes a file useless; None if nothing does."""
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        return "no file of ofa-exit calibrate, or one of another version"
    missing = [part for part in PARTS if not isinstance(saved.get(part), dict)]
    if missing:
        return f"{missing[0]} is missing, or no object"
    if not isinstance(saved["exits"].get("exit_policy"), str):
        return "exits names no exit_policy"
    certificate = saved["certificate"]
    for name in (*_SHARES, *_COUNTS):
        value = certificate.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Compared, not converted: JSON has integers that no float holds.
        if not is_number or not 0 <= value < math.inf:
            return f"{name} of the certificate is {value!r:.80}, not a number of at least 0"
        if name in _SHARES and value > 1:
            return f"{name} of the certificate is {value!r:.80}, above 1"
    if not isinstance(saved["checkpoint"].get("sha256"), str):
        return "the checkpoint has no SHA-256"
    return None


# ------------------------------------------------------------------ fingerprints


@lru_cache(maxsize=16)
def _sha256(path: str, size: int, changed: int) -> str:
    return sha256_of(Path(path))


def checkpoint_fingerprint(path: str) -> dict[str, Any]:
    """Return the name of a checkpoint's file and the SHA-256 of its content."""
    status = os.stat(path)
    return {
        "file": os.path.basename(path),
        "sha256": _sha256(path, status.st_size, status.st_mtime_ns),
    }


def data_fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return name, size and the SHA-256 of the first megabyte of a data file."""
    with open(regular_file(path), "rb") as stream:
        head = hashlib.sha256(stream.read(HEAD_BYTES)).hexdigest()
    return {"file": os.path.basename(path), "bytes": os.path.getsize(path), "sha256_head": head}


def task_fingerprint(kind: str, options: Mapping[str, Any], answers: Any = None) -> dict[str, Any]:
    """Return what decides what a model reads and may answer.

    Args:
        kind: of task: caption, snli_ve, vqa, …
        options: those that a training fixes, by name.
        answers: file of a closed set of answers; None without.
    """
    closed = sha256_of(Path(answers)) if answers else None
    return {"kind": kind, **{name: options[name] for name in sorted(options)}, "answers": closed}


# ------------------------------------------------------------------ use


def reject_foreign(
    path: str, config: ExitConfig, checkpoints: list[str], task: Mapping[str, Any]
) -> None:
    """Raise ValueError unless a file is of this checkpoint and task."""
    _reject_other_origin(
        f"--exit-config {path}",
        "calibrated for",
        "Calibrate this one: ofa-exit calibrate",
        (config.checkpoint, config.task),
        (checkpoints, task),
    )


def reject_foreign_policy(
    origin: Origin, checkpoints: list[str], task: Optional[Mapping[str, Any]]
) -> None:
    """Raise ValueError unless a policy was fitted on this checkpoint and task.

    Args:
        task: its fingerprint; None where it is not known yet.
    """
    wanted = origin.checkpoint, origin.task if task is not None else {}
    found = checkpoints, task or {}
    _reject_other_origin(origin.option, "fitted on", origin.remedy, wanted, found)


def _reject_other_origin(
    option: str,
    made: str,
    remedy: str,
    wanted: tuple[Mapping[str, Any], Mapping[str, Any]],
    found: tuple[list[str], Mapping[str, Any]],
) -> None:
    """Raise ValueError unless checkpoint and task are those that a file was made for.

    Args:
        made: what the file is to its checkpoint, "fitted on".
        wanted: fingerprints of checkpoint and task. found: paths, and the fingerprint of the task.
    """
    (checkpoint, wanted_task), (checkpoints, task) = wanted, found
    if len(checkpoints) != 1:
        raise ValueError(f"{option} is of one checkpoint, and {len(checkpoints)} are given")
    for name in dict.fromkeys([*wanted_task, *task]):
        if wanted_task.get(name) != task.get(name):
            raise ValueError(
                f"{option} was {made} another task: {name} {wanted_task.get(name)}, not "
                f"{task.get(name)}. {remedy}"
            )
    # Last: it reads the whole checkpoint.
    if checkpoint_fingerprint(checkpoints[0])["sha256"] != checkpoint["sha256"]:
        raise ValueError(
            f"{option} was {made} another checkpoint ({checkpoint.get('file')}) than "
            f"{checkpoints[0]}. {remedy}"
        )


def warn_of_other_data(config: ExitConfig, path: str | os.PathLike[str] | None) -> None:
    """Log that the promise is about data like the calibrated; say nothing of that data itself.

    Args:
        path: the file to generate from; None for images without a file.
    """
    if path is not None and data_fingerprint(path) == config.data:
        return
    certificate = config.certificate
    logger.warning(
        "exits calibrated on %s: %s of %g with confidence %g holds for rows drawn like those, not "
        "for other kinds of data",
        *(config.data.get("file"), certificate.get("metric"), certificate.get("keep")),
        certificate.get("confidence"),
    )

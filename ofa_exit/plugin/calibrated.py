"""``--exit-config`` against the checkpoint, task and data that it is used for."""

import dataclasses
from typing import Any, Optional

from fairseq import utils
from omegaconf import OmegaConf

from ofa_exit.plugin.exit_config import (
    read_exit_config,
    reject_foreign,
    task_fingerprint,
    warn_of_other_data,
)
from ofa_exit.plugin.saved_arguments import resolved

# Besides the options that a training fixes.
_DECISIVE = ("ema_eval", "beam_search_vqa_eval")


def fingerprint_of_task(cfg: Any, kind: str) -> dict[str, Any]:
    """Return what decides what a model reads and may answer, see ``task_fingerprint``.

    Args:
        cfg: options of the task, those of the checkpoint's training taken in.
        kind: of task.
    """
    declared = dataclasses.fields(OmegaConf.get_type(cfg) or type(cfg))
    names = [one.name for one in declared if "fallback" in one.metadata or one.name in _DECISIVE]
    answers = getattr(cfg, "answers", None) or getattr(cfg, "ans2label_file", None)
    return task_fingerprint(kind, {name: getattr(cfg, name) for name in names}, answers)


def reject_foreign_config(cfg: Any, kind: str, path: Optional[str] = None) -> None:
    """Raise ValueError if ``--exit-config`` is of another checkpoint or task.

    Args:
        cfg: options of the task; without a checkpoint, as in training, nothing is checked.
        path: of the file (default: the one that ``cfg`` names).
    """
    path, evaluated = path or getattr(cfg, "exit_config", None), resolved(cfg.path)
    if path is not None and evaluated:
        checkpoints = utils.split_paths(evaluated)
        reject_foreign(path, read_exit_config(path), checkpoints, fingerprint_of_task(cfg, kind))


def warn_of_data(cfg: Any, file: Any) -> None:
    """Log what ``--exit-config``, if it is given, promises about the file to generate from."""
    path = getattr(cfg, "exit_config", None)
    if path is not None:
        warn_of_other_data(read_exit_config(path), file)

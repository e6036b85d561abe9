"""``--exit-config`` against the checkpoint, task and data that it is used for."""

import dataclasses
import logging
from argparse import Namespace
from collections.abc import Iterable
from typing import Any, Optional

from fairseq import utils
from omegaconf import OmegaConf

from ofa_exit.plugin.exit_config import (
    read_exit_config,
    reject_foreign,
    reject_foreign_policy,
    task_fingerprint,
    warn_of_other_data,
)
from ofa_exit.plugin.saved_arguments import resolved
from ofa_exit.plugin.search.options import DEFAULTS
from ofa_exit.policies.base import ExitPolicy, Origin
from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)

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


def search_of(options: Any) -> dict[str, Any]:
    """Return the options of a search that are not fairseq's defaults.

    Args:
        options: of generation; those that are missing have the defaults.
    """
    given = {name: getattr(options, name, default) for name, default in DEFAULTS.items()}
    return {name: value for name, value in given.items() if value != DEFAULTS[name]}


def reject_foreign_config(
    cfg: Any, kind: str, path: Optional[str] = None, policy: Optional[ExitPolicy] = None
) -> None:
    """Raise ValueError if exits were calibrated or fitted for another checkpoint or task.

    Args:
        cfg: options of the task; without a checkpoint, as in training, nothing is checked.
        path: of a file for ``--exit-config`` (default: the one that ``cfg`` names).
        policy: to use, which may have been fitted.
    """
    path, evaluated = path or getattr(cfg, "exit_config", None), resolved(cfg.path)
    if path is not None and evaluated:
        checkpoints = utils.split_paths(evaluated)
        reject_foreign(path, read_exit_config(path), checkpoints, fingerprint_of_task(cfg, kind))
    if evaluated and policy is not None and policy.origin is not None:
        checkpoints = utils.split_paths(evaluated)
        reject_foreign_policy(policy.origin, checkpoints, fingerprint_of_task(cfg, kind))
        reject_other_fit(path, policy.origin)


def reject_other_fit(path: Optional[str], origin: Origin) -> None:
    """Raise ValueError if a policy's numbers are not those that ``--exit-config`` tested."""
    if path is not None and read_exit_config(path).certificate.get("fitted") != origin.digest:
        raise ValueError(
            f"{origin.option} was fitted again after --exit-config {path} was calibrated with it. "
            "Run ofa-exit calibrate again"
        )


def warn_of_search(cfg: Any, options: Any) -> None:
    """Log where a search differs from that of ``--exit-config``: other steps exit elsewhere."""
    path = getattr(cfg, "exit_config", None)
    if path is None:
        return
    wanted, found = read_exit_config(path).certificate.get("search", {}), search_of(options)
    different = [
        f"{flag(name)} {found.get(name, DEFAULTS[name])}, calibrated with "
        f"{wanted.get(name, DEFAULTS[name])}"
        for name in DEFAULTS
        if found.get(name, DEFAULTS[name]) != wanted.get(name, DEFAULTS[name])
    ]
    if different:
        logger.warning("--exit-config %s is of another search: %s", path, "; ".join(different))


def warn_of_data(cfg: Any, file: Any) -> None:
    """Log what ``--exit-config``, if it is given, promises about the file to generate from."""
    path = getattr(cfg, "exit_config", None)
    if path is not None:
        warn_of_other_data(read_exit_config(path), file)


def warn_of_settings(paths: Iterable[Optional[str]], options: Any, file: Any) -> None:
    """Log what differs from the calibrations of a grid: ``warn_of_search`` and ``warn_of_data``.

    Args:
        paths: file of each setting; None for those without.
        options: of generation.
        file: to generate from.
    """
    for path in dict.fromkeys(path for path in paths if path is not None):
        setting = Namespace(exit_config=path)
        warn_of_search(setting, options)
        warn_of_data(setting, file)

"""What a checkpoint's model was built with, known before any of its weights is read."""

import ast
import glob
import os
import pickle
from argparse import Namespace
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.options import refuse_misfit_arguments
from ofa_exit.policies.base import ExitPolicy


def refuse_misfit_of_checkpoints(cfg: Any, policy: Optional[ExitPolicy]) -> None:
    """Raises ValueError for exit options that a model of ``cfg.path`` cannot follow, and
    FileNotFoundError where there is none.

    So that nobody waits for a checkpoint first. What cannot be told yet is left to ``build_model``.
    """
    for path in utils.split_paths(told(cfg.path) or ""):
        # Of a checkpoint in parts the files' names begin like it; others may be no local files.
        if "://" not in path and not glob.glob(f"{glob.escape(path.removesuffix('.pt'))}*"):
            raise FileNotFoundError(f"--path {path}: no such checkpoint")
        if policy is None:
            continue
        arguments = saved_arguments(path, cfg.model_overrides)
        if arguments is not None:
            refuse_misfit_arguments(cfg, policy, arguments)


def saved_arguments(path: str, model_overrides: str) -> Optional[Namespace]:
    """The arguments of the OFA model in the checkpoint, complete with the defaults of its arch.

    model_overrides: as on the command line. None where they cannot be told: no such file (fairseq
    has other names for parts of one), torch's format before 1.6, another model, nothing readable.
    Raises ValueError where ``model_overrides`` is no dictionary.
    """
    if not os.path.isfile(path):
        return None
    try:
        # Mapped into memory, so that weights stay on the disk until one looks at them.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        saved = state.get("args") or state["cfg"]["model"]
        values = vars(saved) if isinstance(saved, Namespace) else dict(saved)
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, LookupError, TypeError):
        return None  # what is wrong is told when fairseq reads it
    arguments = Namespace(**{**values, **overrides_of(model_overrides)})
    arch = getattr(arguments, "_name", None) or getattr(arguments, "arch", None)
    if not issubclass(ARCH_MODEL_REGISTRY.get(arch, object), OFAModel):
        return None
    ARCH_CONFIG_REGISTRY[arch](arguments)
    return arguments


def told(value: Any) -> Any:
    """None where a task was set up by hand, without the fairseq option that ``value`` points to."""
    return None if isinstance(value, str) and value.startswith("${") else value


def overrides_of(text: str) -> dict[str, Any]:
    """What ``--model-overrides`` gives. Raises ValueError where it is no dictionary."""
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"--model-overrides {text!r} is no Python dictionary: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(
            f"--model-overrides {text!r}: give a Python dictionary, \"{{'dropout': 0}}\""
        )
    return overrides

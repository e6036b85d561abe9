"""The model's arguments in a checkpoint, read without its weights."""

import ast
import glob
import os
import pickle
from argparse import Namespace
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

from ofa_exit.evaluation.efficiency.depth import check_reference_layers, parse_reference_layers
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.options import reject_misfit_arguments
from ofa_exit.policies.base import ExitPolicy


def reject_misfit_of_checkpoints(cfg: Any, policy: Optional[ExitPolicy]) -> None:
    """Reject exit options that a model of ``cfg.path`` cannot follow, before it is loaded.

    ``build_model`` checks again, for checkpoints whose arguments cannot be read here.

    Raises:
        ValueError: an option does not fit.
        FileNotFoundError: a checkpoint is missing.
    """
    for path in utils.split_paths(resolved(cfg.path) or ""):
        # The files of a checkpoint in parts begin with its name; a URL is no local file.
        if "://" not in path and not glob.glob(f"{glob.escape(path.removesuffix('.pt'))}*"):
            raise FileNotFoundError(f"--path {path}: no such checkpoint")
        if policy is None and reference_layers(cfg) is None:
            continue
        arguments = saved_arguments(path, cfg.model_overrides)
        if arguments is None:
            continue
        reject_shallow_reference(cfg, arguments)
        if policy is not None:
            reject_misfit_arguments(cfg, policy, arguments)


def reference_layers(cfg: Any) -> Optional[tuple[int, int]]:
    """Return ``--reference-layers``, which tasks of older checkpoints lack; see the parser."""
    return parse_reference_layers(getattr(cfg, "reference_layers", None))


def reject_shallow_reference(cfg: Any, arguments: Any) -> None:
    """Raise ValueError if a model of these arguments is deeper than ``--reference-layers``."""
    reference = reference_layers(cfg)
    if reference is not None:
        check_reference_layers(reference, arguments.encoder_layers, arguments.decoder_layers)


def saved_arguments(path: str, model_overrides: str) -> Optional[Namespace]:
    """Return the arguments of the OFA model in a checkpoint, with its architecture's defaults.

    Args:
        model_overrides: as on the command line.

    Returns:
        None if they cannot be read: no such file (a checkpoint in parts), torch's format before
        1.6, another model, or a damaged file. fairseq reports the reason when it loads the file.

    Raises:
        ValueError: ``model_overrides`` is not a dictionary.
    """
    if not os.path.isfile(path):
        return None
    try:
        # Memory-mapped: the weights stay on disk.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        saved = state.get("args") or state["cfg"]["model"]
        values = vars(saved) if isinstance(saved, Namespace) else dict(saved)
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, LookupError, TypeError):
        return None
    arguments = Namespace(**{**values, **parse_overrides(model_overrides)})
    arch = getattr(arguments, "_name", None) or getattr(arguments, "arch", None)
    if not issubclass(ARCH_MODEL_REGISTRY.get(arch, object), OFAModel):
        return None
    ARCH_CONFIG_REGISTRY[arch](arguments)
    return arguments


def resolved(value: Any) -> Any:
    """Return None instead of an unresolved ``${…}``, in a task that was set up without fairseq."""
    return None if isinstance(value, str) and value.startswith("${") else value


def parse_overrides(text: str) -> dict[str, Any]:
    """Return the dictionary of ``--model-overrides``, or raise ValueError."""
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"--model-overrides {text!r} is not a Python dictionary: {error}"
        ) from error
    if not isinstance(overrides, dict):
        raise ValueError(
            f"--model-overrides {text!r} is not a Python dictionary: give \"{{'dropout': 0}}\""
        )
    return overrides

"""The arguments in checkpoints, read without their weights, and the options that must fit them."""

import ast
import glob
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ofa_exit.evaluation.efficiency.depth import check_reference_layers, parse_reference_layers
from ofa_exit.models.arguments import check_arguments_of
from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.options import reject_misfit_arguments, shortened
from ofa_exit.plugin.save_folder import LAST_CHECKPOINT, whole_checkpoint
from ofa_exit.policies.base import ExitPolicy

# How fairseq names the files of a checkpoint in parts, in place of ".pt".
PARTS = ("-shard[0-9]*.pt", "_part[0-9]*.pt", "-model_part-[0-9]*.pt")


@dataclass
class SavedCheckpoint:
    """A checkpoint whose weights stay on disk, with ``--model-overrides`` applied.

    Attributes:
        logged: options of its training that a task has taken, and logged.
    """

    path: str
    state: dict[str, Any]
    overrides: dict[str, Any]
    logged: set[str] = field(default_factory=set)

    @property
    def model_arguments(self) -> Optional[Namespace]:
        """Return the arguments of an OFA model with its architecture's defaults; None for others.

        fairseq reads ``args`` where a file has both.

        Raises:
            ValueError: they are out of range, or do not fit the weights.
        """
        saved = self.state["args"] or self.state["cfg"]["model"]
        arguments = Namespace(**{**values_of(saved), **self.overrides})
        arch = getattr(arguments, "_name", None) or getattr(arguments, "arch", None)
        known = ARCH_MODEL_REGISTRY.get(arch, object) if isinstance(arch, str) else object
        if not issubclass(known, OFAModel):
            return None
        ARCH_CONFIG_REGISTRY[arch](arguments)
        check_arguments_of(self.path, arguments, self.state["model"], self.overrides)
        return arguments

    @property
    def task_options(self) -> dict[str, Any]:
        """Return the options of the training's task, and its name as ``_name``."""
        if self.state["args"] is not None:
            values = dict(vars(self.state["args"]))
            values["_name"] = values.get("task")
        else:
            values = values_of(self.state["cfg"].get("task"))
            values["_name"] = values.get("_name") or values.get("task")
        return {**values, **self.overrides}

    @property
    def criterion_options(self) -> dict[str, Any]:
        """Return the options of the training's criterion, and its name as ``_name``."""
        if self.state["args"] is not None:
            values = dict(vars(self.state["args"]))
            values["_name"] = values.get("criterion")
            return values
        saved = self.state["cfg"].get("criterion")
        values = values_of(saved)
        values.setdefault("_name", saved if isinstance(saved, str) else values.get("criterion"))
        return values

    @property
    def bpe(self) -> Any:
        """Return the name of fairseq's BPE that the training used; None for the task's own."""
        if self.state["args"] is not None:
            return getattr(self.state["args"], "bpe", None)
        chosen = self.state["cfg"].get("bpe")
        return chosen if isinstance(chosen, str) else values_of(chosen).get("_name")

    @property
    def words(self) -> Optional[int]:
        """Return the number of words of the vocabulary; None if it cannot be told."""
        embedding = self.state["model"].get("encoder.embed_tokens.weight")
        is_matrix = isinstance(embedding, Tensor) and embedding.dim() == 2
        return embedding.size(0) if is_matrix else None


def values_of(saved: Any) -> dict[str, Any]:
    """Return arguments, stored as a namespace or a dictionary, as a new dictionary."""
    if isinstance(saved, Namespace):
        return dict(vars(saved))
    if OmegaConf.is_config(saved):
        return OmegaConf.to_container(saved, resolve=False)
    return dict(saved) if isinstance(saved, Mapping) else {}


def command_of(cfg: Any) -> Optional[DictConfig]:
    """Return the configuration of the command that a task's options belong to."""
    parent = cfg._get_parent() if isinstance(cfg, DictConfig) else None
    return parent if parent is not None and "checkpoint" in parent else None


def saved_checkpoints(cfg: Any) -> list[SavedCheckpoint]:
    """Return the checkpoints of a command: those of ``--path``, or the one that training starts at.

    Checkpoints in parts and remote ones are left out: fairseq finds them.

    Args:
        cfg: options of the task.

    Raises:
        ValueError, OSError: a checkpoint is missing, or cannot be used.
    """
    evaluated = resolved(cfg.path)
    if evaluated:
        named = [("--path", path) for path in utils.split_paths(evaluated)]
        overrides = parse_overrides(resolved(cfg.model_overrides) or "{}")
    else:
        start = _start_of_training(command_of(cfg))
        named, overrides = [] if start is None else [start], {}
    found = []
    for option, path in named:
        if "://" in path or is_in_parts(path):
            continue
        try:
            found.append(SavedCheckpoint(path, read_checkpoint(path, weights=False), overrides))
        except (ValueError, OSError) as error:
            raise ValueError(f"{option} {error}") from error
    return found


def is_in_parts(path: str) -> bool:
    """Return whether fairseq's parts of a checkpoint exist, and the file itself does not."""
    return not os.path.lexists(path) and bool(_parts(path))


def _parts(path: str) -> list[str]:
    start = glob.escape(path.removesuffix(".pt"))
    return sorted(part for ending in PARTS for part in glob.glob(f"{start}{ending}"))


def _start_of_training(command: Any) -> Optional[tuple[str, str]]:
    """Return the option that names the checkpoint that fairseq-train loads, and the file.

    fairseq trains from scratch where ``--restore-file`` does not exist.
    """
    if command is None:
        return None
    options, suffix = command.checkpoint, _suffix(command)
    if options.restore_file != LAST_CHECKPOINT:
        if options.finetune_from_model is not None:
            raise ValueError(
                f"--restore-file {options.restore_file} and --finetune-from-model "
                f"{options.finetune_from_model}: give one of them"
            )
        file = options.restore_file.replace(".pt", f"{suffix}.pt")
        _reject_other_parts("--restore-file", options.restore_file, file)
        return "--restore-file", file or "''"
    whole = f"{options.save_dir}/{LAST_CHECKPOINT}"
    last = whole.replace(".pt", f"{suffix}.pt")
    if os.path.lexists(last):
        return "--save-dir:", whole_checkpoint(last)
    _reject_other_parts("--save-dir:", whole, last)
    for name in ("continue_once", "finetune_from_model"):
        file = getattr(options, name, None)
        if file is not None:
            option = f"--{name.replace('_', '-')}"
            _reject_other_parts(option, file, file)
            return option, file or "''"
    return None


def _suffix(command: Any) -> str:
    """Return what fairseq-train adds to the names of the checkpoints that it writes and resumes."""
    distributed = command.distributed_training
    is_sharded = distributed.ddp_backend == "fully_sharded" and distributed.use_sharded_state
    shard = f"-shard{distributed.distributed_rank}" if is_sharded else ""
    return f"{command.checkpoint.checkpoint_suffix}{shard}"


def _reject_other_parts(option: str, whole: str, wanted: str) -> None:
    """Raise ValueError if a checkpoint exists, but not in the form that a training starts at.

    Args:
        whole: the checkpoint in one file.
        wanted: the file that fairseq-train opens, and without which it trains from scratch.
    """
    if "://" in whole or os.path.lexists(wanted):
        return
    found = [whole] if os.path.lexists(whole) else _parts(whole)
    if found:
        raise ValueError(
            f"{option} {wanted} is missing, and {found[0]} beside it is not read. Resume from "
            "parts with --ddp-backend fully_sharded --use-sharded-state and as many processes as "
            "wrote them, and otherwise from a whole file"
        )


def reject_misfit_of_checkpoints(
    cfg: Any, policy: Optional[ExitPolicy], checkpoints: list[SavedCheckpoint]
) -> None:
    """Reject exit options that a model cannot follow, before it is loaded.

    ``build_model`` checks again, for checkpoints whose arguments cannot be read here.

    Raises:
        ValueError: an option does not fit.
    """
    for checkpoint in checkpoints:
        arguments = checkpoint.model_arguments if resolved(cfg.path) else None
        if arguments is not None:
            reject_shallow_reference(cfg, arguments)
            reject_misfit_arguments(cfg, policy, arguments)


def reference_layers(cfg: Any) -> Optional[tuple[int, int]]:
    """Return ``--reference-layers``, which tasks of older checkpoints lack; see the parser."""
    return parse_reference_layers(getattr(cfg, "reference_layers", None))


def reject_shallow_reference(cfg: Any, arguments: Any) -> None:
    """Raise ValueError if a model of these arguments is deeper than ``--reference-layers``."""
    reference = reference_layers(cfg)
    if reference is not None:
        check_reference_layers(reference, arguments.encoder_layers, arguments.decoder_layers)


def reject_large_images(cfg: Any, arguments: Any) -> None:
    """Raise ValueError if a model of these arguments has no positions for the task's images."""
    side, cells = resolved(cfg.patch_image_size), getattr(arguments, "image_bucket_size", None)
    if side and cells and -(-side // 16) > cells:  # the stem halves each side four times
        raise ValueError(
            f"--patch-image-size is {side}, and the model has positions for {16 * cells} pixels "
            f"(--image-bucket-size {cells}): give at most {16 * cells}"
        )


def reject_unknown_model(arguments: Any) -> None:
    """Raise ValueError if fairseq knows no model of the name in these arguments."""
    name = getattr(arguments, "_name", None) or getattr(arguments, "arch", None)
    if not isinstance(name, str) or name not in {*ARCH_MODEL_REGISTRY, *MODEL_REGISTRY}:
        raise ValueError(
            f"the model is of the kind {name!r}, which fairseq does not know: give --arch, or a "
            "checkpoint of an OFA model"
        )


def reject_misfit_of_model(cfg: Any, arguments: Any) -> None:
    """Raise ValueError if a model of these arguments cannot follow the task's options."""
    reject_shallow_reference(cfg, arguments)
    reject_large_images(cfg, arguments)


def saved_arguments(path: str, model_overrides: str) -> Optional[Namespace]:
    """Return the arguments of the OFA model in a checkpoint, with its architecture's defaults.

    Args:
        model_overrides: as on the command line.

    Returns:
        None if the file holds another model, or is missing (a checkpoint in parts).

    Raises:
        ValueError: ``model_overrides`` is not a dictionary, or the file is no checkpoint.
    """
    overrides = parse_overrides(model_overrides)
    if not os.path.exists(path):
        return None
    state = read_checkpoint(path, weights=False)
    return SavedCheckpoint(path, state, overrides).model_arguments


def resolved(value: Any) -> Any:
    """Return None instead of an unresolved ``${…}``, in a task that was set up without fairseq."""
    return None if isinstance(value, str) and value.startswith("${") else value


def parse_overrides(text: str) -> dict[str, Any]:
    """Return the dictionary of ``--model-overrides``, or raise ValueError."""
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"--model-overrides {shortened(text)} is not a Python dictionary: {error}"
        ) from error
    if not isinstance(overrides, dict):
        raise ValueError(
            f"--model-overrides {text!r} is not a Python dictionary: give \"{{'dropout': 0}}\""
        )
    return overrides

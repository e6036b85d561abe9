"""The moving average of a model's weights (EMA): kept by a training, evaluated by ``--ema-eval``.

fairseq keeps the average (``--store-ema``) and stores it in the checkpoint, as OFA does. This file
fixes three things:

1. fairseq's average fails on integer buffers, which OFA's state dict has, and averages a tensor of
   several names, as OFA's word embedding, once per name.
2. It cannot start from a checkpoint that has no average: a KeyError.
3. Generation and validation ignore the average of a checkpoint.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from fairseq import checkpoint_utils, trainer
from fairseq.models.ema import EMA
from torch import Tensor, nn

from ofa_exit.models.checkpoint_file import check_names, check_weights, load_file, official_names
from ofa_exit.plugin.compat import patch
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, resolved
from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)


class ModelAverage(EMA):
    """fairseq's average, over floating-point tensors, each once; other entries are copied."""

    def restore(self, state_dict: dict[str, Tensor], build_fp32_params: bool = False) -> None:
        """Load a checkpoint's average. fairseq skips the names that it does not know."""
        super().restore(official_names(state_dict), build_fp32_params)

    def build_fp32_params(self, state_dict: Optional[Mapping[str, Tensor]] = None) -> None:
        """Set the float32 tensors of ``--ema-fp32``, by default to those of the averaged model.

        Args:
            state_dict: a checkpoint's; it is fitted to the model.
        """
        state = self.model.state_dict() if state_dict is None else official_names(dict(state_dict))
        if state_dict is not None:
            self.model.upgrade_state_dict(state)
        made: dict[Any, Tensor] = {}  # one tensor may have several names
        for name, value in state.items():
            if name in self.fp32_params:
                self.fp32_params[name].copy_(value)
                continue
            floating = value.is_floating_point()
            self.fp32_params[name] = made.setdefault(
                _place(value), value.float() if floating else value
            )

    @torch.no_grad()
    def _step_internal(self, new_model: nn.Module, updates: Optional[int] = None) -> None:
        averaged = self.fp32_params if self.config.ema_fp32 else self.model.state_dict()
        done = set()
        for name, value in new_model.state_dict().items():
            average = averaged[name]
            if _place(average) in done:
                continue
            done.add(_place(average))
            if average.is_floating_point() and not name.endswith("version"):
                average.lerp_(value.to(average), 1 - self.decay)
            else:
                average.copy_(value)
        # Also clears what the model has cached, where both share their tensors.
        nn.Module.load_state_dict(self.model, averaged)


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """Return what names of one tensor have in common."""
    return tensor.data_ptr(), tensor.shape


@patch(trainer, "build_ema")
def build_average(build: Any, model: Any, cfg: Any, device: Any) -> ModelAverage:
    return ModelAverage(model, cfg, device)


@patch(trainer.Trainer, "load_checkpoint")
def start_average(
    load: Any, self: trainer.Trainer, filename: str, *args: Any, **kwargs: Any
) -> Any:
    """Start the average from a checkpoint's weights if it has no average of its own."""
    if not self.cfg.ema.store_ema or not os.path.isfile(filename):
        return load(self, filename, *args, **kwargs)
    with usage_errors():
        average = read_average(filename)
    if average is not None:
        return load(self, filename, *args, **kwargs)
    self.cfg.ema.store_ema = False
    try:
        extra_state = load(self, filename, *args, **kwargs)
    finally:
        self.cfg.ema.store_ema = True
    self._ema = None
    logger.info("the average starts from the weights of %s", filename)
    assert self.ema is not None  # made now, before the first update
    return extra_state


def check_average_of_training(cfg: Any, eval_options: Sequence[str]) -> None:
    """Raise ValueError for options of the average that would have no effect in a training.

    Args:
        cfg: the task's.
        eval_options: its options that add generation to validation.
    """
    if cfg.ema_eval:
        raise ValueError(
            "--ema-eval is for checkpoints: in training, give --uses-ema to validate with the "
            "average"
        )
    if not cfg.uses_ema:
        return
    if not cfg.store_ema:
        raise ValueError("--uses-ema needs --store-ema, which keeps the average")
    if not any(getattr(cfg, option) for option in eval_options):
        raise ValueError(
            f"--uses-ema needs {' or '.join(map(flag, eval_options))}: only the generation of "
            "validation uses the average"
        )


# ------------------------------------------------------------------ generation and validation


@patch(checkpoint_utils, "load_model_ensemble_and_task")
def load_averages(
    load: Any,
    filenames: list[str],
    arg_overrides: Optional[dict[str, Any]] = None,
    task: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Load the average instead of the weights with ``--ema-eval``. Without, warn of an average."""
    models, cfg, task = load(filenames, arg_overrides, task, *args, **kwargs)
    chosen = getattr(getattr(task, "cfg", None), "ema_eval", False)
    chosen = (arg_overrides or {}).get("ema_eval", chosen)
    for filename, model in zip(filenames, models):
        if chosen:
            with usage_errors():
                model.load_state_dict(require_average(filename), strict=True)
            logger.info("%s: evaluating the moving average of the weights", filename)
        elif read_average(filename, weights=False) is not None:
            logger.warning(
                "%s also holds a moving average of its weights, which is not used: add --ema-eval "
                "to evaluate the average",
                filename,
            )
    return models, cfg, task


def read_average(path: str, weights: bool = True) -> Optional[dict[str, Tensor]]:
    """Return the averaged state dict of a checkpoint, with official names.

    Args:
        weights: check its numbers. In any case the tensors stay on disk until they are used.

    Returns:
        None without an average, or if there is no such file (a checkpoint in parts).

    Raises:
        ValueError: the file is no checkpoint, or the average cannot be used.
    """
    if not os.path.isfile(path):
        return None
    return _average_in(path, load_file(path, check_bytes=False), weights)


def _average_in(path: str, state: Any, weights: bool) -> Optional[dict[str, Tensor]]:
    extra = state.get("extra_state") if isinstance(state, dict) else None
    average = extra.get("ema") if isinstance(extra, dict) else None
    if not average:
        return None
    check = check_weights if weights else check_names
    check(f"{path}, moving average", average)
    return official_names(average)


def require_average(path: str) -> dict[str, Tensor]:
    """Return what ``read_average`` does, or raise ValueError if there is none."""
    average = read_average(path)
    if average is None:
        raise _missing_average(path)
    return average


def _missing_average(path: str) -> ValueError:
    return ValueError(
        f"--ema-eval: {path} holds no moving average of its weights. Train with --store-ema, or "
        "leave --ema-eval out"
    )


def reject_missing_averages(cfg: Any, checkpoints: Sequence[SavedCheckpoint]) -> None:
    """Raise ValueError if ``--ema-eval`` is given and a checkpoint of ``--path`` has no average."""
    if getattr(cfg, "ema_eval", False) is True and resolved(cfg.path):
        for checkpoint in checkpoints:
            if _average_in(checkpoint.path, checkpoint.state, weights=False) is None:
                raise _missing_average(checkpoint.path)

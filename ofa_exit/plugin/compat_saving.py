"""Repair how fairseq 0.12 saves and resumes trainings. Importing this module applies all repairs.

1. A checkpoint is copied over the old ``checkpoint_last.pt``, so that a kill leaves a part of it.
   A save that fails is tried again behind the bytes of the first attempt, which cannot be loaded.
   Both write beside the file and rename. A full disk is reported on one line.
2. Training cannot resume if ``checkpoint_last.pt`` is damaged, although others may be whole.
3. Two trainings with one ``--save-dir`` overwrite each other's checkpoints.
"""

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from fairseq import checkpoint_utils, trainer
from fairseq.file_io import PathManager

from ofa_exit.models.checkpoint_file import DamagedFileError
from ofa_exit.plugin.compat import patch
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.save_folder import (
    LAST_CHECKPOINT,
    hold_save_folder,
    newest_whole_checkpoint,
    whole_file,
)

logger = logging.getLogger(__name__)


@patch(checkpoint_utils, "torch_persistent_save")
def save_whole_file(save: Callable, obj: Any, filename: str, async_write: bool = False) -> None:
    if async_write or not PathManager.supports_rename(filename):
        save(obj, filename, async_write)
        return
    with whole_file(filename) as file:
        torch.save(obj, file)


@patch(PathManager, "copy")
def copy_whole_file(
    copy: Callable, src_path: str, dst_path: str, overwrite: bool = False
) -> bool | str:
    if not PathManager.supports_rename(dst_path):
        return copy(src_path, dst_path, overwrite)
    with open(src_path, "rb") as source, whole_file(dst_path) as target:
        shutil.copyfileobj(source, target, 1 << 24)
    return dst_path


@patch(trainer.Trainer, "load_checkpoint")
def resume_from_whole_checkpoint(
    load: Callable, self: trainer.Trainer, filename: str, *args: Any, **kwargs: Any
) -> Any:
    try:
        return load(self, filename, *args, **kwargs)
    except UsageError as error:
        chosen = self.cfg.checkpoint.restore_file != LAST_CHECKPOINT
        is_last = os.path.basename(filename).startswith("checkpoint_last")
        if chosen or not is_last or not isinstance(error.__cause__, DamagedFileError):
            raise
        with usage_errors():
            whole = newest_whole_checkpoint(filename, error.__cause__)
        logger.warning(f"{error.__cause__}. Resuming from {whole}, the newest whole checkpoint")
        return load(self, whole, *args, **kwargs)


@patch(checkpoint_utils, "load_checkpoint")
def one_training_per_folder(load: Callable, cfg: Any, training: Any, **kwargs: Any) -> Any:
    if not cfg.no_save and training.should_save_checkpoint_on_current_rank:
        hold_save_folder(cfg.save_dir, training.checkpoint_suffix)
    return load(cfg, training, **kwargs)


@patch(checkpoint_utils, "verify_checkpoint_directory")
def name_read_only_folder(verify: Callable, save_dir: str) -> None:
    try:
        verify(save_dir)
    except OSError as error:
        raise UsageError(
            f"--save-dir {save_dir}: {error.strerror}. Give a folder that can be written"
        ) from error

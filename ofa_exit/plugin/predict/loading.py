"""``ofa_exit.load``: a checkpoint and its dictionary as a ``Predictor``."""

import functools
import os
from collections.abc import Mapping
from typing import Any, Optional

import torch
from fairseq import checkpoint_utils
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

from ofa_exit.data.text import TextEncoder, load_codec
from ofa_exit.plugin.average import require_average
from ofa_exit.plugin.errors import prediction_errors
from ofa_exit.plugin.predict.checkpoint import (
    TASK_OPTIONS,
    dictionary_folder,
    kind_of,
    open_checkpoint,
    task_config,
)
from ofa_exit.plugin.predict.predictor import Predictor
from ofa_exit.plugin.saved_arguments import SavedCheckpoint
from ofa_exit.plugin.trained_options import reject_other_vocabulary
from ofa_exit.plugin.vocabulary import OFADictionary


def load(
    checkpoint: str | os.PathLike[str],
    *,
    device: Optional[str | torch.device] = None,
    bpe_dir: Optional[str | os.PathLike[str]] = None,
    fp16: bool = False,
    ema: bool = False,
    **task_options: Any,
) -> Predictor:
    """Load a checkpoint to caption images and to answer about them.

    Args:
        checkpoint: file of fairseq-train, of this package or of OFA.
        device: as torch names it (default: cuda if there is one, else cpu).
        bpe_dir: folder of dict.txt and of the BPE's files (default: the checkpoint's folder if
            dict.txt is there, else the folder that it was trained with).
        fp16: use half precision.
        ema: use the moving average of the weights, for a checkpoint that was trained with
            ``--store-ema``.
        task_options: options in place of those that the checkpoint was trained with, see
            ``TASK_OPTIONS``.

    Raises:
        PredictionError: options or files that do not fit.
    """
    with prediction_errors():
        saved = open_checkpoint(checkpoint)
    return load_opened(saved, device, bpe_dir, fp16, ema, task_options)


def load_opened(
    saved: SavedCheckpoint,
    device: Optional[str | torch.device],
    bpe_dir: Optional[str | os.PathLike[str]],
    fp16: bool,
    ema: bool,
    task_options: Mapping[str, Any],
) -> Predictor:
    """Load a checkpoint that is open, see ``load``."""
    with prediction_errors():
        wrong = [name for name in task_options if name not in TASK_OPTIONS]
        if wrong:
            raise ValueError(f"unknown option {wrong[0]!r}: choose from {', '.join(TASK_OPTIONS)}")
        place = _device(device)
        given = {name: value for name, value in task_options.items() if value is not None}
        if ema:
            require_average(saved.path)
            given["ema_eval"] = True
        folder = dictionary_folder(saved.path, bpe_dir, saved.task_options)
        # Once per task, since it logs what it replaces.
        config_of = functools.cache(
            functools.partial(task_config, folder=folder, checkpoint=saved, given=given)
        )
        kind = kind_of(saved.task_options) or "caption"
        cfg = config_of(kind)
        dictionary = OFADictionary.of_folder(folder, cfg.code_dict_size, cfg.num_bins)
        reject_other_vocabulary(cfg, dictionary, folder, [saved])
        encoder = TextEncoder(load_codec(folder, get_encoder), dictionary)
        predictor = Predictor(None, dictionary, encoder, saved, config_of)
        (model,), *_ = checkpoint_utils.load_model_ensemble_and_task(
            [saved.path], task=predictor._task(kind)
        )
    predictor.model = (model.half() if fp16 else model).to(place).eval()
    return predictor


def _device(name: Any) -> torch.device:
    """Return the device. Raises ValueError if there is none of this name."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(name)!r} cannot be used ({reason}). Try 'cpu'") from error

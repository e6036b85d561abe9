"""What a checkpoint says about its task: options, dictionary, kind."""

import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Optional

from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

from ofa_exit.data.text import OFFICIAL_FOLDER
from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, reject_large_images
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.files import first_folder
from ofa_exit.plugin.trained_options import (
    answers_of_training,
    differences,
    kind_of_task,
    take_trained_options,
)
from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)

TASKS = {"caption": "mue_caption", "vqa": "mue_vqa", "entailment": "mue_snli_ve"}
ALIASES = {"snli_ve": "entailment"}  # the name that other commands have
# Options for a user to set in place of the checkpoint's.
TASK_OPTIONS = (
    *("patch_image_size", "imagenet_default_mean_and_std", "code_dict_size", "num_bins"),
    *("max_src_length", "max_tgt_length", "caption_prompt", "prompt_type", "add_caption"),
    *("answers", "beam_search_vqa_eval", "add_object", "max_object_length", "labels"),
    "max_image_pixels",
)


def open_checkpoint(path: str | os.PathLike[str]) -> SavedCheckpoint:
    """Return a checkpoint, whose weights stay on disk.

    Raises:
        ValueError, OSError: it is missing, or cannot be used.
    """
    name = os.fspath(path)
    return SavedCheckpoint(name, read_checkpoint(name, weights=False), {})


def kind_of(saved: Mapping[str, Any]) -> Optional[str]:
    """Return the kind of task (``TASKS``) that a checkpoint was trained on; None for another."""
    trained = kind_of_task(saved.get("_name"))
    return next((kind for kind, name in TASKS.items() if kind_of_task(name) == trained), None)


def dictionary_folder(
    checkpoint: str, given: Optional[str | os.PathLike[str]], saved: Mapping[str, Any]
) -> str:
    """Return the folder of dict.txt: the given one, the checkpoint's, or the one of its training.

    Raises:
        ValueError: there is none.
    """
    if given is not None:
        return os.fspath(given)
    trained_with = [saved.get("bpe_dir"), saved.get("data") and first_folder(saved["data"])]
    for folder in (os.path.dirname(os.path.abspath(checkpoint)), *trained_with):
        if folder and os.path.isfile(os.path.join(folder, "dict.txt")):
            return folder
    raise ValueError(
        f"{checkpoint}: there is no dict.txt beside the checkpoint. Give the folder of its "
        f"dictionary as bpe_dir (--bpe-dir). {OFFICIAL_FOLDER}"
    )


def task_config(
    kind: str, folder: str, checkpoint: SavedCheckpoint, given: Mapping[str, Any]
) -> Any:
    """Return the options of a task for a checkpoint: the given ones, else those of its training.

    Args:
        kind: key of ``TASKS``.
        folder: of the dictionary.

    Raises:
        ValueError: an option is invalid.
    """
    name, saved = TASKS[kind], checkpoint.task_options
    cls: type[OFATask] = TASK_REGISTRY[name]
    cfg = TASK_DATACLASS_REGISTRY[name]()
    own = {option.name for option in fields(cfg)}
    values: dict[str, Any] = {}
    if saved.get("max_tgt_length") is not None:
        values["max_tgt_length"] = saved["max_tgt_length"]
    if kind == kind_of(saved) == "vqa" and "answers" not in given:
        values["answers"] = answers_of_training(saved)
    for option, value in {**values, **given}.items():
        if option in own:
            setattr(cfg, option, value)
    cfg._name, cfg.bpe_dir = name, folder
    cfg.path = None  # given options may differ from the training's
    take_trained_options(cfg, cls.prefix, [checkpoint])
    for option, value, trained in differences(cfg, cls.prefix, saved):
        logger.warning(
            "%s is %s, but %s was trained with %s", flag(option), value, checkpoint.path, trained
        )
    cfg.path = checkpoint.path
    reject_large_images(cfg, checkpoint.model_arguments)
    cls.check_options(cfg)
    return cfg

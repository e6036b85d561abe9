"""What a checkpoint says about its task: options, dictionary, kind."""

import logging
import os
import pickle
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Optional

from fairseq import checkpoint_utils
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.files import first_folder

logger = logging.getLogger(__name__)

TASKS = {"caption": "mue_caption", "vqa": "mue_vqa", "entailment": "mue_snli_ve"}
OFFICIAL_TASKS = {"caption": "caption", "vqa": "vqa_gen", "entailment": "snli_ve"}
# What reading a file that is no checkpoint raises.
_UNREADABLE = (*(RuntimeError, LookupError, AttributeError, TypeError, EOFError),)
# Options of the input that hold for every task of a checkpoint.
INPUT_OPTIONS = (
    *("patch_image_size", "imagenet_default_mean_and_std", "code_dict_size", "num_bins"),
    *("max_src_length", "max_tgt_length"),
)
# Those that hold for the task of the training alone.
TRAINED_OPTIONS = ("caption_prompt", "prompt_type", "add_caption")
# Options for a user to set in place of the checkpoint's.
TASK_OPTIONS = (*INPUT_OPTIONS, *TRAINED_OPTIONS, "answers")


def read_checkpoint(path: str) -> dict[str, Any]:
    """Return the state of a checkpoint, on the CPU.

    Raises:
        ValueError, OSError: the file is missing, or no checkpoint.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint. Check the path")
    try:
        return checkpoint_utils.load_checkpoint_to_cpu(path)
    except pickle.UnpicklingError as error:  # torch's own text advises to run its code
        raise ValueError(
            f"{path}: no checkpoint of fairseq or OFA: torch.save did not write it, or it holds "
            "more than data. Download or export it again"
        ) from error
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: no checkpoint of fairseq or OFA ({reason}). Download or export it again"
        ) from error


def saved_options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a checkpoint's task by name; its own name is ``task``."""
    if isinstance(state.get("args"), Namespace):
        return vars(state["args"])
    task = (state.get("cfg") or {}).get("task") or {}
    values = vars(task) if isinstance(task, Namespace) else dict(task)
    return {**values, "task": values.get("_name")}


def kind_of(saved: Mapping[str, Any]) -> Optional[str]:
    """Return the kind of task (``TASKS``) that a checkpoint was trained on; None for another."""
    names = {name: kind for table in (TASKS, OFFICIAL_TASKS) for kind, name in table.items()}
    return names.get(saved.get("task", ""))


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
        "dictionary as bpe_dir (--bpe-dir)"
    )


def task_config(kind: str, folder: str, saved: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Return the options of a task for a checkpoint: the given ones, else those of its training.

    Args:
        kind: key of ``TASKS``.
        folder: of the dictionary.

    Raises:
        ValueError: an option is invalid.
    """
    name = TASKS[kind]
    cls: type[OFATask] = TASK_REGISTRY[name]
    cfg = TASK_DATACLASS_REGISTRY[name]()
    own = {option.name for option in fields(cfg)}
    fixed: tuple[str, ...] = INPUT_OPTIONS
    if kind_of(saved) == kind:
        fixed += TRAINED_OPTIONS
    values = {option: saved[option] for option in fixed if saved.get(option) is not None}
    answers = saved.get("answers")
    if kind == kind_of(saved) == "vqa" and answers and "answers" not in given:
        if os.path.isfile(answers):
            values["answers"] = answers
        else:
            logger.warning(
                "the checkpoint was trained on the answers of %s, which is missing: any words are "
                "searched. Give the file as answers (--answers)",
                answers,
            )
    for option, value in {**values, **given}.items():
        if option in own:
            setattr(cfg, option, value)
    cfg._name, cfg.bpe_dir = name, folder
    cfg.data = folder  # there are no rows to read, but the check below asks for some
    cls.check_options(cfg)
    return cfg

"""Options of a task that a checkpoint's training fixes: taken from it, or compared with it."""

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from omegaconf import OmegaConf

from ofa_exit.plugin.saved_arguments import (
    SavedCheckpoint,
    command_of,
    reject_large_images,
    resolved,
    values_of,
)
from ofa_exit.plugin.trained_words import reject_other_words
from ofa_exit.plugin.vocabulary import OFADictionary
from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)

# Kinds of the official tasks, whose rows this package reads; our tasks' kind is their prefix.
OFFICIAL_KINDS = {"caption": "caption", "snli_ve": "snli_ve", "vqa_gen": "vqa"}


def trained_option(fallback: Any, help: str, any_task: bool = False) -> Any:
    """Declare an option of a task that decides what a model reads.

    Args:
        fallback: value where neither the command line nor a checkpoint has one.
        any_task: the option has one meaning in all of OFA's tasks, so that a checkpoint of another
            task fixes it, too: of refcoco (its image size) for captions.
    """
    shown = "none" if fallback is None else "off" if fallback is False else fallback
    return dataclasses.field(
        default=None,
        metadata={
            "help": f"{help} (default: the checkpoint's, or else {shown})",
            "fallback": fallback,
            "any_task": any_task,
        },
    )


def _declared(cfg: Any) -> list[Any]:
    fields = dataclasses.fields(OmegaConf.get_type(cfg) or type(cfg))
    return [one for one in fields if "fallback" in one.metadata]


def kind_of_task(name: Any) -> Optional[str]:
    """Return the kind of the official task, or of ours; None for all others."""
    return OFFICIAL_KINDS.get(name) or getattr(TASK_REGISTRY.get(name), "prefix", None)


def _trained(option: Any, saved: dict[str, Any], kind: str) -> Any:
    """Return a checkpoint's value of an option for tasks of a kind; None if it has none."""
    if not option.metadata["any_task"] and kind_of_task(saved.get("_name")) != kind:
        return None
    value, fallback = resolved(saved.get(option.name)), option.metadata["fallback"]
    wanted = str if fallback is None else type(fallback)
    if value is not None and type(value) is not wanted:
        raise ValueError(
            f"the checkpoint's {option.name} is {value!r}, not {wanted.__name__}. Give "
            f"--model-overrides \"{{'{option.name}': {fallback!r}}}\""
        )
    return value


def answers_of_training(saved: Mapping[str, Any]) -> Optional[str]:
    """Return the file of candidate answers of a VQA training. Log a warning if it is missing."""
    answers = resolved(saved.get("answers")) or resolved(saved.get("ans2label_file"))
    if not answers or os.path.isfile(answers):
        return answers or None
    logger.warning(
        "the checkpoint was trained on the answers of %s, which is missing: any words are "
        "searched. Give the file as answers (--answers, ans2label_file in arg_overrides)",
        answers,
    )
    return None


def take_trained_options(cfg: Any, kind: str, checkpoints: list[SavedCheckpoint]) -> None:
    """Set options that are not given to those of the checkpoints' training.

    They are set in the command's configuration, too, which fairseq stores in new checkpoints.

    Args:
        cfg: options of the task.
        kind: kind of the task, see ``kind_of_task``.

    Raises:
        ValueError: an option of generation differs from a checkpoint's training.
    """
    command = command_of(cfg)
    taken = []
    for option in _declared(cfg):
        name = option.name
        for checkpoint in checkpoints:
            try:
                trained = _trained(option, checkpoint.task_options, kind)
            except ValueError as error:
                raise ValueError(f"{checkpoint.path}: {error}") from error
            if getattr(cfg, name) is None and trained is not None:
                setattr(cfg, name, trained)
                taken.append(f"{flag(name)} {trained}")
        if getattr(cfg, name) is None:
            setattr(cfg, name, option.metadata["fallback"])
        if command is not None and command.get("task") is not None:
            command.task[name] = getattr(cfg, name)
    if resolved(cfg.path):  # training may start at a checkpoint of other options
        for checkpoint in checkpoints:
            reject_other_training(cfg, kind, checkpoint.task_options, checkpoint.path)
            reject_large_images(cfg, checkpoint.model_arguments)
    # One checkpoint may serve several tasks, as with ofa_exit.load.
    new = [one for one in taken if one not in checkpoints[0].logged]
    if new:
        checkpoints[0].logged.update(new)
        logger.info("as in the training of %s: %s", checkpoints[0].path, ", ".join(new))


def reject_other_training(cfg: Any, kind: str, trained: Any, path: str = "the checkpoint") -> None:
    """Raise ValueError if a task's options differ from those of a checkpoint's task.

    Other images or prompts than in training cost quality, and nothing else would show it.

    Args:
        trained: options of the checkpoint's task, as fairseq loads them.
    """
    for name, given, value in differences(cfg, kind, values_of(trained)):
        raise ValueError(
            f"{flag(name)} is {given}, but {path} was trained with {value}. Leave the option "
            f"out, or override the checkpoint's: --model-overrides \"{{'{name}': {given!r}}}\""
        )


def differences(cfg: Any, kind: str, saved: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the options that differ from a training's: the name, the task's value, the training's.

    Args:
        saved: options of the training's task, and its name as ``_name`` or ``task``.
    """
    saved = {"_name": saved.get("task"), **saved}
    for option in _declared(cfg):
        given, trained = getattr(cfg, option.name), _trained(option, saved, kind)
        if trained is not None and given is not None and given != trained:
            yield option.name, given, trained


def reject_given_differences(checkpoint: SavedCheckpoint, given: dict[str, Any]) -> None:
    """Raise ValueError if fairseq-validate gets other options than a checkpoint's training.

    It takes its task from the checkpoint, with all options of the command line put in.

    Args:
        given: options of the command line, with ``model_overrides`` put in.
    """
    saved = checkpoint.task_options
    declared = TASK_DATACLASS_REGISTRY.get(saved.get("_name"))
    kind = kind_of_task(saved.get("_name"))
    if declared is not None and kind is not None:
        cfg = declared()
        for option in _declared(cfg):
            setattr(cfg, option.name, given.get(option.name))
        reject_other_training(cfg, kind, saved, checkpoint.path)


def reject_other_vocabulary(
    cfg: Any, dictionary: OFADictionary, folder: str, checkpoints: list[SavedCheckpoint]
) -> None:
    """Raise ValueError if a checkpoint was trained with another vocabulary than the task's.

    Args:
        dictionary: the task's.
        folder: where its dict.txt is.
    """
    words = len(dictionary)
    for checkpoint in checkpoints:
        if checkpoint.bpe == "bert":
            raise ValueError(
                f"{checkpoint.path} was trained with BERT's words (--bpe bert, Chinese OFA), which "
                "are not supported. Use a checkpoint of GPT-2's BPE"
            )
        if resolved(cfg.path) and checkpoint.words not in (None, words):
            plain = words - cfg.code_dict_size - cfg.num_bins
            remedy = "Give the folder of its training's dict.txt by --bpe-dir"
            if checkpoint.words == plain:
                remedy = "Give --code-dict-size 0 --num-bins 0"
            raise ValueError(
                f"{checkpoint.path} has {checkpoint.words} words, and {folder}/dict.txt with "
                f"--code-dict-size {cfg.code_dict_size} and --num-bins {cfg.num_bins} has {words}. "
                f"{remedy}"
            )
        reject_other_words(dictionary, checkpoint)

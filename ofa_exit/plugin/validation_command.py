"""fairseq-validate of checkpoints of other tasks, as those of official OFA.

fairseq-validate takes task, criterion and data from the checkpoint. This file fixes two things:

1. It fails if the checkpoint's task is not registered, as ``caption`` of OFA, and ignores --task.
   A task other than the checkpoint's is set up from the command line, as in fairseq-generate.
2. Without a batch size it ends in an assertion. Here it takes fairseq-generate's --max-tokens.
"""

import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Optional

from fairseq import checkpoint_utils, options, tasks
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig, OmegaConf

from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.plugin.compat import patch
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.saved_arguments import SavedCheckpoint, parse_overrides
from ofa_exit.plugin.trained_options import kind_of_task

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 12000  # of fairseq-generate
# For checkpoints whose own loss is not registered, such as OFA's reward of CIDEr.
OFA_CRITERION = "adjust_label_smoothed_cross_entropy"


@patch(options, "parse_args_and_arch")
def size_batches(parse: Callable, parser: ArgumentParser, *args: Any, **kwargs: Any) -> Any:
    parsed = parse(parser, *args, **kwargs)
    # fairseq-train has no --path. fairseq-generate has both, and takes the same default itself.
    if {"--path", "--valid-subset"} <= parser._option_string_actions.keys():
        # In a second parse fairseq leaves out the options that are not given.
        sizes = [vars(parsed).get(name, 0) for name in ("max_tokens", "batch_size")]
        if sizes == [None, None]:
            parsed.max_tokens = DEFAULT_MAX_TOKENS
    return parsed


@patch(checkpoint_utils, "load_model_ensemble_and_task")
def load_for_given_task(
    load: Callable,
    filenames: list[str],
    arg_overrides: Optional[dict[str, Any]] = None,
    task: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Load a checkpoint of another task into the one of the command line.

    Returns:
        The models, the command's configuration in place of the checkpoint's, and the task.
    """
    command = None if task is not None else command_for_given_task(filenames, arg_overrides or {})
    if command is None:
        return load(filenames, arg_overrides, task, *args, **kwargs)
    task = tasks.setup_task(command.task)
    overrides = parse_overrides(command.common_eval.model_overrides)
    models, _, _ = load(filenames, overrides, task, *args, **kwargs)
    return models, command, task


@usage_errors()
def command_for_given_task(filenames: list[str], given: dict[str, Any]) -> Optional[DictConfig]:
    """Return the command's configuration if it asks for another task than the checkpoint's.

    Args:
        given: options of the command line. Only fairseq-validate gives ``path`` here.

    Returns:
        None for other commands, for a checkpoint of the same task, and if there is no such file.
    """
    path = filenames[0]
    if "path" not in given or kind_of_task(given.get("task")) is None or not os.path.lexists(path):
        return None
    overrides = parse_overrides(given.get("model_overrides", "{}"))
    saved = SavedCheckpoint(path, read_checkpoint(path, weights=False), overrides)
    if saved.task_options["_name"] == given["task"]:
        return None
    return command_for(saved, given)


def command_for(saved: SavedCheckpoint, given: dict[str, Any]) -> DictConfig:
    """Return the configuration of a command, with the criterion of a checkpoint's training.

    Args:
        given: options of the command line. Its ``criterion`` comes before the checkpoint's.
    """
    loss = saved.criterion_options
    trained = loss["_name"]
    criterion = given.get("criterion", trained)
    if criterion not in CRITERION_DATACLASS_REGISTRY:
        logger.warning(
            "%s was trained with the criterion %s, which is unknown: the loss is that of %s; "
            "--criterion gives another",
            *(saved.path, trained, OFA_CRITERION),
        )
        criterion = OFA_CRITERION
    values = {}
    if criterion == trained:
        known = {option.name for option in fields(CRITERION_DATACLASS_REGISTRY[criterion])}
        values = {name: loss[name] for name in known & loss.keys()}
    values = {**default_options(), **values, **given, "criterion": criterion}
    return convert_namespace_to_omegaconf(Namespace(**values))


def default_options() -> dict[str, Any]:
    """Return the defaults of fairseq's options.

    Without them the conversion of a namespace sets flags that point to another option, as
    ``sentence_avg`` of a criterion to that of the optimization: it takes the reference for True.
    """
    values: dict[str, Any] = {}
    for section in OmegaConf.to_container(OmegaConf.structured(FairseqConfig())).values():
        for name, value in section.items() if isinstance(section, dict) else ():
            if not str(value).startswith("${") and not name.startswith("_"):
                values.setdefault(name, value)
    return values

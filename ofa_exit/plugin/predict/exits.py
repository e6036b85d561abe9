"""Exit rules given by name and fields, as in ``exits="similarity", decoder_threshold=0.9``."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Optional

from fairseq.tasks import TASK_REGISTRY

from ofa_exit.plugin.exit_config import read_exit_config, reject_foreign, reject_foreign_policy
from ofa_exit.plugin.options import (
    PREFIX,
    build_exit_policy,
    option_fields,
    policy_flags,
    reject_misfit_arguments,
)
from ofa_exit.plugin.predict.checkpoint import TASKS, open_checkpoint
from ofa_exit.plugin.saved_arguments import SavedCheckpoint
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.registry import POLICIES
from ofa_exit.spelling import nearest

# Options of the runtime. "lossless" goes without a policy, "image_tokens" with or without one,
# "config" in place of all options, the others with any policy.
RUNTIME_OPTIONS = (
    "kv",
    "preset",
    "image_tokens",
    "options",
    "lossless",
    "lossless_layer",
    "config",
)
# Options of ``Predictor.predict`` that are no exit options.
CALL_OPTIONS = ("exits", "beam", "max_length", "batch_size", "skip_unreadable", "on_read")


def exit_flags(exits: str, options: Mapping[str, Any]) -> Namespace:
    """Return a policy and its options, named without ``exit_``, as ``ExitFlags`` names them.

    Raises:
        ValueError: an option that neither a policy nor the runtime has.
    """
    fields = option_fields(exits) if exits in POLICIES else {}
    known = [*policy_flags(), *(PREFIX + name for name in RUNTIME_OPTIONS)]
    flags = dict.fromkeys(PREFIX + name for name in (*RUNTIME_OPTIONS, "trace"))
    for name, value in options.items():
        option = fields.get(name, PREFIX + name)
        if option not in known:
            near = nearest(name, [*(one.removeprefix(PREFIX) for one in known), *CALL_OPTIONS])
            hint = f"exits={exits!r} takes {', '.join(fields) or 'none'}"
            if near:
                hint = f"did you mean {near!r}?"
            raise ValueError(f"unknown option {name!r}: {hint}")
        flags[option] = value
    return Namespace(exit_policy=exits, **flags)


def exits_of(
    exits: str, options: Mapping[str, Any], task: str
) -> tuple[Optional[ExitPolicy], Namespace]:
    """Return the policy, None for "none", and its options.

    Args:
        task: kind of task, "caption" or "answer", whose defaults hold.

    Raises:
        ValueError: options make no sense, alone or together.
    """
    flags = exit_flags(exits, options)
    return build_exit_policy(flags, task), flags


def open_checked(
    checkpoint: str, kind: str, exits: str, options: Mapping[str, Any]
) -> SavedCheckpoint:
    """Open a checkpoint, and check whether its model can follow a policy, before it is loaded.

    Args:
        kind: of task, see ``TASKS``.

    Raises:
        ValueError: the policy makes no sense, which is checked first, or the checkpoint is none.
    """
    task = TASK_REGISTRY[TASKS[kind]]
    policy, flags = exits_of(exits, options, task.exit_defaults)
    saved = open_checkpoint(checkpoint)
    if flags.exit_config is not None:  # the task's options are checked once they are known
        config = read_exit_config(flags.exit_config)
        same = {**config.task, "kind": task.prefix}
        reject_foreign(flags.exit_config, config, [checkpoint], same)
    if policy is not None and policy.origin is not None:
        reject_foreign_policy(policy.origin, [checkpoint], None)
    arguments = saved.model_arguments
    if arguments is not None:
        reject_misfit_arguments(flags, policy, arguments)
    return saved

"""Set up the task of an official checkpoint. Importing this module applies the repair.

OFA's notebooks call ``load_model_ensemble_and_task`` without a task. fairseq then sets up the one
that the checkpoint names, and ends in an AssertionError if it is not registered, as ``caption``.
"""

import logging
from collections.abc import Callable
from typing import Any

from fairseq import tasks
from fairseq.dataclass.configs import FairseqConfig
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf

from ofa_exit.plugin.compat import patch
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.saved_arguments import values_of
from ofa_exit.plugin.trained_options import OFFICIAL_KINDS, answers_of_training

logger = logging.getLogger(__name__)


@patch(tasks, "setup_task")
def setup_official_task(setup: Callable, cfg: Any, **kwargs: Any) -> Any:
    """Set up our task for a checkpoint of the official one; other configurations as they are."""
    values = values_of(cfg)
    name = values.pop("task", None) or values.get("_name")
    if not kwargs.get("from_checkpoint") or name in TASK_REGISTRY:
        return setup(cfg, **kwargs)
    if name not in OFFICIAL_KINDS:
        ours = ", ".join(f"mue_{kind}" for kind in OFFICIAL_KINDS.values())
        raise UsageError(
            f"the checkpoint's task {name!r} is unsupported. Set up one of {ours} with "
            "fairseq.tasks.setup_task, and load with task=TASK"
        )
    kind = OFFICIAL_KINDS[name]
    values["_name"] = f"mue_{kind}"
    if kind == "vqa":
        values["ans2label_file"] = answers_of_training(values)
    logger.info("the checkpoint's task %s is set up as %s", name, values["_name"])
    # Options of the task refer to other sections, which the checkpoint may lack.
    command = OmegaConf.structured(FairseqConfig())
    command.task = values
    return setup(command.task, **kwargs)

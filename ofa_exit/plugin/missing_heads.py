"""Commands that evaluate reject a checkpoint without the weights of its exit heads.

Training fills them, to train them. Elsewhere heads that nobody has trained would answer.
"""

from collections.abc import Callable
from typing import Any

from fairseq import checkpoint_utils

from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.compat import patch
from ofa_exit.plugin.errors import UsageError


@patch(checkpoint_utils, "load_model_ensemble_and_task")
def reject_missing_heads(load: Callable, filenames: list[str], *args: Any, **kwargs: Any) -> Any:
    """Load checkpoints for generation or validation, with the weights of all their heads."""
    models, cfg, task = load(filenames, *args, **kwargs)
    for filename, model in zip(filenames, models):
        missing = model.decoder.exit_heads.missing if isinstance(model, OFAModel) else []
        if missing:
            raise UsageError(
                f"{filename} lacks the weights of the exit heads after decoder layers "
                f"{','.join(map(str, missing))} (--exit-head {model.cfg.exit_head}). Train them: "
                f"fairseq-train --finetune-from-model {filename}; or leave exit_layers out of "
                "--model-overrides"
            )
    return models, cfg, task

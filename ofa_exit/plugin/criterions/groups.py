"""Training a part of a model, and updates of one parameter group at a time.

A parameter's group is its attribute ``param_group``, as for fairseq's composite optimizer.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ofa_exit.heads.base import ExitHeads

logger = logging.getLogger(__name__)


def exit_heads(model: Any) -> ExitHeads:
    """Return the exit heads of a model; without entries if they have no weights."""
    return model.decoder.exit_heads


@contextmanager
def without_dropout(heads: ExitHeads) -> Iterator[None]:
    """Keep the heads in eval mode inside the ``with`` block."""
    training = heads.training
    heads.eval()
    try:
        yield
    finally:
        heads.train(training)


def train_only(model: Any, groups: dict[str, nn.Module]) -> dict[str, int]:
    """Freeze ``model`` except ``groups``, and keep the frozen part in eval mode.

    Args:
        groups: by the name of a parameter group the module whose parameters are in it.

    Returns:
        The number of parameters in each group.
    """
    model.requires_grad_(False)
    sizes = {}
    for name, module in groups.items():
        module.requires_grad_(True)
        for parameter in module.parameters():
            parameter.param_group = name  # type: ignore[attr-defined]
        sizes[name] = sum(parameter.numel() for parameter in module.parameters())
    model.trained_modules = list(groups.values())
    model.train(model.training)
    return sizes


def step_groups(optimizer: Any, groups: set[str]) -> None:
    """Update the parameters of ``groups`` alone, with any of fairseq's optimizers.

    Remove the gradients of all other parameters: an optimizer skips parameters without a gradient,
    their moments and their weight decay. fairseq's ``step(groups=…)`` works with the composite
    optimizer only, and not with ``--amp``.

    Raises:
        ValueError: parameters have no groups, as with ``--fp16``, where all are one tensor.
    """
    step = getattr(optimizer, "fp32_optimizer", getattr(optimizer, "wrapped_optimizer", optimizer))
    if hasattr(optimizer, "_sync_fp16_grads_to_fp32"):
        optimizer._sync_fp16_grads_to_fp32()  # otherwise the step would copy the gradients again
    for parameter in step.params:
        group = getattr(parameter, "param_group", None)
        if group is None:
            raise ValueError(
                "updates of parameter groups need separate parameters: with --fp16 add "
                "--fp16-no-flatten-grads, or use --memory-efficient-fp16 or --amp"
            )
        if group not in groups:
            parameter.grad = None
    optimizer.step()


def warn_of_untrained(model: Any) -> None:
    """Warn once that a backbone which is not trained has no checkpoint."""
    if not (model.from_checkpoint or getattr(model, "warned_of_untrained", False)):
        model.warned_of_untrained = True
        logger.warning(
            "the frozen backbone is untrained: give its checkpoint by --finetune-from-model"
        )

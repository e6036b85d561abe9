"""Updates of one parameter group at a time, under any of fairseq's optimizers."""

from __future__ import annotations

from typing import Any


def step_groups(optimizer: Any, groups: set[str]) -> None:
    """Steps the parameters of ``groups``: a composite optimizer by its own groups, any other with
    the gradients of the rest taken away. Raises ValueError as ``keep_gradients`` does."""
    keep_gradients(optimizer, groups)
    if optimizer.supports_groups:
        optimizer.step(groups=groups)
    else:
        optimizer.step()


def keep_gradients(optimizer: Any, groups: set[str]) -> None:
    """Takes the gradients from all parameters outside ``groups``, so that the next step passes over
    them: parameters, moments and weight decay.

    A parameter's group is its attribute ``param_group``, as for fairseq's composite optimizer, with
    which each group can have an optimizer and a schedule of its own. Its ``step(groups=…)`` does
    the same, but the other optimizers ignore these groups and ``--amp`` does not know them; this
    works with all.

    Raises ValueError if the parameters have no groups, as in ``--fp16`` where all are one tensor.
    """
    step = getattr(optimizer, "fp32_optimizer", getattr(optimizer, "wrapped_optimizer", optimizer))
    if hasattr(optimizer, "_sync_fp16_grads_to_fp32"):
        optimizer._sync_fp16_grads_to_fp32()  # or the step would fetch the gradients again
    for parameter in step.params:
        group = getattr(parameter, "param_group", None)
        if group is None:
            raise ValueError(
                "updates of single groups need parameters that are kept apart: with --fp16 add "
                "--fp16-no-flatten-grads, or use --memory-efficient-fp16 or --amp"
            )
        if group not in groups:
            parameter.grad = None

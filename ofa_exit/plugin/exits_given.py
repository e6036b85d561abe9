"""Which options make something exit: a policy, or an option of the runtime that needs none."""

from collections.abc import Sequence
from typing import Any

from ofa_exit.spelling import flag

WITHOUT_POLICY = ("exit_lossless", "exit_image_tokens")


def exits_given(cfg: Any, policy: Any) -> list[str]:
    """Return the names of the options that are given; tasks of older checkpoints lack some.

    Args:
        policy: what ``build_exit_policy`` made of ``cfg``.
    """
    given = [] if policy is None else ["exit_policy"]
    return given + [name for name in WITHOUT_POLICY if getattr(cfg, name, None) is not None]


def reject_exits_of_loss(cfg: Any, policy: Any, eval_options: Sequence[str]) -> None:
    """Raise ValueError for exits in a training whose validation does not generate."""
    for name in exits_given(cfg, policy)[:1]:
        flags = (flag(option) for option in eval_options)
        raise ValueError(
            f"{flag(name)} {getattr(cfg, name)}: the loss is computed at full depth. Add "
            f"{' or '.join(flags)} to generate in validation, or leave it out"
        )

"""Learning rate schedules that fairseq lacks."""

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq import trainer
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY, register_lr_scheduler
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
    PolynomialDecayLRSchedule,
    PolynomialDecayLRScheduleConfig,
)
from fairseq.optim.lr_scheduler.step_lr_scheduler import StepLRSchedule, StepLRScheduleConfig
from omegaconf import II

from ofa_exit.plugin.compat import patch
from ofa_exit.plugin.errors import UsageError


@register_lr_scheduler("step_from_start", dataclass=StepLRScheduleConfig)
class StepFromStart(StepLRSchedule):
    """Multiply the rate by ``--lr-decay`` every ``--lr-deacy-period`` updates, from the first one.

    fairseq's ``step`` counts the periods from the end of the warm-up. With one of 500 updates, a
    rate that halves every 3 epochs (BLIPEE Section 4) would do so 500 updates late. The options
    are those of ``step``, spelled as in fairseq.
    """

    def step_update(self, num_updates: int) -> float:
        """Set and return the rate of the next update."""
        warmup = self.warmup_updates
        # The parent subtracts the warm-up again.
        return super().step_update(num_updates if num_updates < warmup else num_updates + warmup)


@dataclass
class WarmupRatioConfig(PolynomialDecayLRScheduleConfig):
    warmup_ratio: float = field(
        default=0.0,
        metadata={
            "help": "share of all updates for the warm-up, as in OFA; the rate decays to the last "
            "update of --max-epoch or --max-update"
        },
    )
    total_num_update: Optional[float] = field(  # type: ignore[assignment]
        default=None, metadata={"help": "updates of the decay (default: --max-update)"}
    )
    max_update: int = II("optimization.max_update")


class PolynomialDecayWithRatio(PolynomialDecayLRSchedule):
    """fairseq's ``polynomial_decay`` with OFA's ``--warmup-ratio``."""

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        ratio = cfg.warmup_ratio
        if not 0 <= ratio < 1:
            raise UsageError(f"--warmup-ratio is {ratio}; give 0 or more, below 1")
        if ratio and cfg.warmup_updates:
            raise UsageError("give --warmup-ratio or --warmup-updates, not both")
        # With a ratio, 1 until the number of updates is known.
        cfg.total_num_update = 1 if ratio else cfg.total_num_update or cfg.max_update
        if cfg.total_num_update <= 0:
            raise UsageError(
                "--lr-scheduler polynomial_decay needs the number of updates: give --warmup-ratio, "
                "--total-num-update or --max-update"
            )
        super().__init__(cfg, optimizer)
        self.awaits_total = ratio > 0

    def start(self, total: int, num_updates: int) -> None:
        """Set the length of the schedule and of its warm-up.

        Args:
            total: updates of the whole training.
            num_updates: updates that are done.
        """
        self.awaits_total = False
        self.total_num_update = total
        self.cfg.warmup_updates = int(total * self.cfg.warmup_ratio)
        if num_updates:
            self.step_update(num_updates)
        else:
            self.warmup_factor = 1 / max(self.cfg.warmup_updates, 1)
            self.optimizer.set_lr(self.warmup_factor * self.lr)


# In place of fairseq's own, which lacks the option. Without it both are the same.
del LR_SCHEDULER_REGISTRY["polynomial_decay"]
register_lr_scheduler("polynomial_decay", dataclass=WarmupRatioConfig)(PolynomialDecayWithRatio)


@patch(trainer.Trainer, "get_train_iterator")
def count_updates(get: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Tell the schedule how many updates the training has, once an epoch's batches are known."""
    iterator = get(self, *args, **kwargs)
    if getattr(self.lr_scheduler, "awaits_total", False):
        options = self.cfg.optimization
        total = _updates(len(iterator), options.max_epoch, options.max_update, options.update_freq)
        self.lr_scheduler.start(total, self.get_num_updates())
    return iterator


def _updates(batches: int, max_epoch: int, max_update: int, update_freq: list[int]) -> int:
    if not max_epoch and not max_update:
        raise UsageError("--warmup-ratio needs the length of the training: give --max-epoch")
    frequencies = [*update_freq, *update_freq[-1:] * max_epoch][:max_epoch]
    total = sum(math.ceil(batches / frequency) for frequency in frequencies)
    return min(total or max_update, max_update or total)

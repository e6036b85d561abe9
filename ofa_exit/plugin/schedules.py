"""Learning rate schedules that fairseq lacks."""

from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.step_lr_scheduler import StepLRSchedule, StepLRScheduleConfig


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

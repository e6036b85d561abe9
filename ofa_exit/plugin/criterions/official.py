"""OFA's own criterions by their official names, with the last decoder layer's loss alone.

Releases of OFA spell the names ``adjust_…`` and ``ajust_…``.
"""

from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import register_criterion
from torch import Tensor

from ofa_exit.objectives.cross_entropy import drop_worst, tokens_kept
from ofa_exit.objectives.encouraging import encouraging_bonus
from ofa_exit.plugin.criterions.mue import ExitBatch, MuELoss, TokenLossConfig
from ofa_exit.plugin.criterions.target_tokens import TargetTokens

SPELLINGS = ("adjust", "ajust")


@dataclass
class OFALossConfig(TokenLossConfig):
    layer_weights: str = field(
        default="last", metadata={"help": "as in mue_loss (default: last, OFA's own loss)"}
    )


@dataclass
class EncouragingLossConfig(OFALossConfig):
    log_end: float = field(
        default=0.75,
        metadata={
            "help": "probability above which the bonus log(1 - p) of a word continues as its "
            "tangent; 1 for never"
        },
    )
    drop_best_ratio: float = field(
        default=0.0,
        metadata={"help": "share of the tokens that are left, those of smallest loss, to exclude"},
    )
    drop_best_after: int = field(
        default=0, metadata={"help": "number of updates before these tokens are excluded"}
    )


class EncouragingLoss(MuELoss):
    """OFA's token loss with a bonus for likely words, see ``encouraging_bonus``.

    After ``drop_worst``, ``drop_best`` excludes the tokens of smallest cross-entropy.
    """

    def __init__(self, task: Any, cfg: EncouragingLossConfig) -> None:
        super().__init__(
            task,
            cfg.label_smoothing,
            cfg.layer_weights,
            cfg.drop_worst_ratio,
            cfg.drop_worst_after,
            cfg.report_accuracy,
            cfg.sentence_avg,
        )
        log_end, drop_best_ratio = cfg.log_end, cfg.drop_best_ratio
        drop_best_after = cfg.drop_best_after
        if not 0 < log_end <= 1:
            raise ValueError(f"--log-end is {log_end}; give more than 0, at most 1")
        if not 0 <= drop_best_ratio < 1:
            raise ValueError(f"--drop-best-ratio is {drop_best_ratio}; give 0 or more, below 1")
        if drop_best_after < 0:
            raise ValueError(f"--drop-best-after is {drop_best_after}; give 0 or more updates")
        self.log_end = log_end
        self.drop_best_ratio = drop_best_ratio
        self.drop_best_after = drop_best_after

    def tokens_kept(self, model: Any, ntokens: int) -> int:
        kept = super().tokens_kept(model, ntokens)
        drops_best = self.training and model.num_updates > self.drop_best_after
        return tokens_kept(kept, self.drop_best_ratio) if drops_best else kept

    def shared_words(self, model: Any, batch: ExitBatch) -> None:
        """Return None: the encouraging loss needs the logits."""

    def label_loss(
        self, model: Any, logits: Tensor, tokens: TargetTokens, losses: Tensor, kept: int
    ) -> Tensor:
        bonus = encouraging_bonus(
            logits,
            tokens.target,
            self.label_smoothing,
            self.log_end,
            tokens.allowed,
            tokens.confidence,
        )
        not_worst = super().tokens_kept(model, losses.numel())
        losses, bonus = (drop_worst(x, not_worst, by=losses) for x in (losses, bonus))
        return drop_worst(losses + bonus, kept, by=-losses).sum()


for _spelling in SPELLINGS:
    register_criterion(f"{_spelling}_label_smoothed_cross_entropy", dataclass=OFALossConfig)(
        type(f"{_spelling.title()}CrossEntropy", (MuELoss,), {"__doc__": MuELoss.__doc__})
    )
    register_criterion(
        f"{_spelling}_label_smoothed_encouraging_loss", dataclass=EncouragingLossConfig
    )(type(f"{_spelling.title()}EncouragingLoss", (EncouragingLoss,), {}))

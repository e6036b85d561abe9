"""The target tokens of a batch, which token losses are computed over."""

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.objectives.cross_entropy import token_rows


def reject_empty(sample: dict[str, Any]) -> None:
    """Raise ValueError that names the rows of a batch without target tokens."""
    if not sample or sample["ntokens"] == 0:
        rows = sample["id"].tolist() if sample else []
        raise ValueError(
            f"a batch without target tokens (rows {rows}, counted from 0): every target is empty "
            "or truncated. Check these rows of the data file and the length limits"
        )


@dataclass
class TargetTokens:
    """The M target tokens of a batch, without padding.

    Attributes:
        rows: Long [M], their places among the B·L positions.
        target: Long [M].
        allowed: Bool [M, V], the words that can be an answer; None where every word can.
        confidence: [M], weights of their log-probabilities; None for 1.
    """

    rows: Tensor
    target: Tensor
    allowed: Optional[Tensor]
    confidence: Optional[Tensor]

    @classmethod
    def of(cls, sample: dict[str, Any], padding_idx: int) -> "TargetTokens":
        """Return the targets of a sample; ``sample["ntokens"]`` must be their number."""
        reject_empty(sample)
        target = sample["target"]
        rows = token_rows(target, padding_idx, sample["ntokens"])
        allowed, conf = sample.get("constraint_masks"), sample.get("conf")
        return cls(
            rows,
            target.flatten().index_select(0, rows),
            None if allowed is None else allowed.flatten(0, 1).index_select(0, rows),
            None if conf is None else conf.index_select(0, rows // target.size(1)),
        )

    def at(self, x: Tensor) -> Tensor:
        """Return values [B, L, C] at the target tokens, [M, C]."""
        return x.flatten(0, 1).index_select(0, self.rows)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the most probable allowed words, Long [M], of logits [M, V]."""
        if self.allowed is not None:
            logits = logits.masked_fill(~self.allowed, -torch.inf)
        return logits.argmax(-1)

    @torch.no_grad()
    def count_correct(self, logits: Tensor) -> Tensor:
        """Count the targets that logits [M, V] rank first among the allowed words."""
        return self.predict(logits).eq(self.target).sum()

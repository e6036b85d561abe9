"""PABEE's loss: the backbone and all heads learn together."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from ofa_exit.objectives.cross_entropy import token_cross_entropy, token_rows


@dataclass
class PabeeLossConfig(FairseqDataclass):
    """No options."""


@register_criterion("pabee_loss", dataclass=PabeeLossConfig)
class PabeeLoss(FairseqCriterion):
    """Mean of the heads' and the last layer's cross-entropies, weighted 1…N (as in PABEE)."""

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number of tokens and what to log."""
        target, ntokens = sample["target"], sample["ntokens"]
        rows = token_rows(target, self.padding_idx, ntokens)
        decoder = model.decoder
        _, extra = model(**sample["net_input"], features_only=True, return_layers=True)
        states = extra["layer_states"]  # before layer 1 and after each layer, [B, L, C] each
        features = dict(decoder.head_features(states, extra["encoder_out"]))
        total, weights = torch.zeros((), device=target.device), 0
        for layer, hidden in [*features.items(), (len(decoder.layers), states[-1])]:
            tokens = hidden.flatten(0, 1).index_select(0, rows)  # [M, C]
            if layer in features:
                logits = decoder.exit_heads.scores(layer, tokens, None, decoder.shared_scores)
            else:
                logits = decoder.shared_scores(tokens)
            loss, _ = token_cross_entropy(logits, target.flatten().index_select(0, rows), 0.0)
            total, weights = total + layer * loss.sum(), weights + layer
        total = total / weights
        log = {"loss": total.detach(), "ntokens": ntokens, "sample_size": ntokens}
        return total, ntokens, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss per token, in bits."""
        tokens = sum(log["sample_size"] for log in logging_outputs)
        loss = sum(log["loss"] for log in logging_outputs)
        metrics.log_scalar("loss", loss / tokens / math.log(2), tokens, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True

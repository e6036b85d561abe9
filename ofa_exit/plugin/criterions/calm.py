"""The criterion ``calm_meta_loss``: CALM's learned confidence on a frozen model."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from ofa_exit.heads.meta import MetaHeads
from ofa_exit.objectives.consistency import LOSSES
from ofa_exit.plugin.criterions.groups import exit_heads, train_only, warn_of_untrained
from ofa_exit.plugin.criterions.target_tokens import TargetTokens
from ofa_exit.plugin.errors import UsageError


@dataclass
class CalmMetaConfig(FairseqDataclass):
    calm_meta_loss: str = field(
        default="independent",
        metadata={
            "help": "independent: each layer's cross-entropy, both classes of equal weight; "
            "geometric: likelihood of the first layer whose word is the last layer's"
        },
    )


@register_criterion("calm_meta_loss", dataclass=CalmMetaConfig)
class CalmMetaLoss(FairseqCriterion):
    """Train the meta classifier of a frozen model (CALM, Schuster et al. 2022).

    The second stage of CALM, after the authors' code. The first is a loss on every layer. The label
    of a target token after a layer with a head is whether its most probable word there, among the
    allowed words, is the last layer's. The targets themselves are no labels. The losses are in
    ``objectives.consistency``.

    Logged, besides ``loss`` in bits per token, for each layer i with a head, in percent:
    ``acc_layer_i``, labels that the classifier predicts, and ``consistent_layer_i``, tokens whose
    word is the last layer's. A constant prediction reaches max(c, 100 - c), with
    c = ``consistent_layer_i``.
    """

    def __init__(self, task: Any, calm_meta_loss: str) -> None:
        super().__init__(task)
        if calm_meta_loss not in LOSSES:
            raise ValueError(
                f"--calm-meta-loss {calm_meta_loss!r}: choose from {', '.join(LOSSES)}"
            )
        self.consistency_loss = LOSSES[calm_meta_loss]

    def prepare_training(self, model: Any) -> None:
        """Freeze everything but the classifier.

        Raises:
            UsageError: the model has no meta classifier.
        """
        heads = exit_heads(model)
        if not isinstance(heads, MetaHeads):
            raise UsageError(
                "calm_meta_loss trains the classifier of meta heads, and this model has none: add "
                "--exit-head meta and --exit-layers all"
            )
        train_only(model, {"meta": heads})

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the mean loss times M, the number of target tokens M, and what to log.

        ``sample["ntokens"]`` must be the number of targets that are not padding.
        """
        warn_of_untrained(model)
        tokens, ntokens = TargetTokens.of(sample, self.padding_idx), sample["ntokens"]
        heads = cast(MetaHeads, exit_heads(model))
        final, extra = model(**sample["net_input"], exit_features=True)
        hidden = {layer: tokens.at(x) for layer, x in extra["head_features"].items()}  # [M, C] each
        with torch.no_grad():
            wanted = tokens.predict(model.output_layer(tokens.at(final)))  # Long [M]
            # One layer after the other, so that one layer's logits [M, V] are in memory.
            shared = model.decoder.shared_scores
            consistent = torch.stack(
                [tokens.predict(shared(x)).eq(wanted) for x in hidden.values()]
            )
        logits = heads.meta_logits(torch.stack(list(hidden.values())))  # [K, M, 2]
        loss = self.consistency_loss(logits, consistent) * ntokens
        log = {
            "loss": loss.detach(),
            "ntokens": ntokens,
            "nsentences": sample["nsentences"],
            "sample_size": ntokens,
        }
        correct = logits.argmax(-1).eq(consistent.long())  # Bool [K, M]
        for name, values in (("acc", correct), ("consistent", consistent)):
            counts = dict(zip(hidden, values.sum(1)))
            log.update((f"{name}_layer_{layer}", count) for layer, count in counts.items())
        return loss, ntokens, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log means over all workers' batches, weighted by their tokens."""

        def mean(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs) / ntokens

        ntokens = sum(log.get("ntokens", 0) for log in logging_outputs)
        if not ntokens:  # only placeholders of workers without batches
            return
        metrics.log_scalar("loss", mean("loss") / math.log(2), ntokens, round=3)
        for key in dict.fromkeys(key for log in logging_outputs for key in log):
            if "_layer_" in key:
                metrics.log_scalar(key, 100 * mean(key), ntokens, priority=1000, round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True

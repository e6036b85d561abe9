"""The criterion ``mue_loss``; with ``--layer-weights last`` it is OFA's own loss."""

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from ofa_exit.objectives.cross_entropy import (
    drop_worst,
    token_cross_entropy,
    token_rows,
    tokens_kept,
)
from ofa_exit.objectives.layerwise import parse_layer_weights, score_layers
from ofa_exit.plugin.errors import UsageError


@dataclass
class MuELossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "share of the probability that goes to the other words"}
    )
    layer_weights: str = field(
        default="uniform",
        metadata={
            "help": "weights of the decoder layers' losses: uniform (MuE), last (no exits, the "
            "loss of plain OFA) or a number for each layer, separated by commas"
        },
    )
    drop_worst_ratio: float = field(
        default=0.0,
        metadata={"help": "share of the tokens, those of the largest loss, to leave out"},
    )
    drop_worst_after: int = field(
        default=0, metadata={"help": "leave them out only after this many updates"}
    )
    report_accuracy: bool = field(
        default=False, metadata={"help": "log the token accuracy of each layer"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


class LayerScore(NamedTuple):
    """Sums over a batch's tokens for one decoder layer, each a tensor of one number."""

    loss: Tensor
    nll: Tensor
    correct: Tensor


def refuse_empty(sample: dict[str, Any]) -> None:
    """Raises ValueError for a batch without target tokens, naming its rows."""
    if not sample or sample["ntokens"] == 0:
        rows = sample["id"].tolist() if sample else []
        raise ValueError(
            f"a batch without target tokens (rows {rows}, counted from 0): every target is "
            "empty or cut off; look at these rows of the data file and at the length limits"
        )


@register_criterion("mue_loss", dataclass=MuELossConfig)
class MuELoss(FairseqCriterion):
    """Weighted mean over decoder layers of OFA's token loss (MuE Eqs. 12 and 13).

    Logged, per token (per sentence with ``--sentence-avg``) and in bits: ``loss``, its parts
    ``loss_layer_1`` … and ``nll_loss``, which is the last layer's without smoothing and gives
    ``ppl``; ``acc_layer_1`` … in percent. Layers of weight 0 are not computed.
    """

    def __init__(
        self,
        task: Any,
        label_smoothing: float,
        layer_weights: str,
        drop_worst_ratio: float,
        drop_worst_after: int,
        report_accuracy: bool,
        sentence_avg: bool,
    ) -> None:
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--label-smoothing is {label_smoothing}; give 0 or more, below 1")
        if not 0 <= drop_worst_ratio < 1:
            raise ValueError(f"--drop-worst-ratio is {drop_worst_ratio}; give 0 or more, below 1")
        if drop_worst_after < 0:
            raise ValueError(f"--drop-worst-after is {drop_worst_after}; give 0 or more updates")
        parse_layer_weights(
            layer_weights, layer_weights.count(",") + 1
        )  # nonsense is refused at once
        self.label_smoothing = label_smoothing
        self.layer_weights = layer_weights
        self.drop_worst_ratio = drop_worst_ratio
        self.drop_worst_after = drop_worst_after
        self.report_accuracy = report_accuracy
        self.sentence_avg = sentence_avg

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The summed loss, the number fairseq divides it by, and what to log.

        ``sample["ntokens"]`` must be the number of targets that are not padding. The loss is
        always reduced to its sum.
        """
        refuse_empty(sample)
        if self.training and getattr(model.decoder, "exits", None):
            raise UsageError(
                "a model with --exit-layers trains its exits alone: use --criterion "
                "blipee_adversarial, or leave --exit-layers out"
            )
        weights = parse_layer_weights(self.layer_weights, len(model.decoder.layers))
        features = self.layer_features(model, sample["net_input"], weights)

        target, ntokens = sample["target"], sample["ntokens"]
        rows = token_rows(target, self.padding_idx, ntokens)
        kept = tokens_kept(ntokens, self.drop_ratio(model))

        def at_tokens(x: Tensor) -> Tensor:
            return x.flatten(0, 1).index_select(0, rows)

        conf, allowed = sample.get("conf"), sample.get("constraint_masks")
        score = functools.partial(
            self.score,
            model,
            target=target.flatten().index_select(0, rows),
            allowed=None if allowed is None else at_tokens(allowed),
            confidence=None if conf is None else conf.index_select(0, rows // target.size(1)),
            kept=kept,
        )
        scores = score_layers([at_tokens(x) for x in features], weights, score)
        loss = torch.stack([weights[i] * s.loss for i, s in scores.items()]).sum()

        sample_size = sample["nsentences"] if self.sentence_avg else kept
        log = {
            "loss": loss.detach(),
            "nll_loss": scores[len(weights) - 1].nll.detach(),
            "ntokens": ntokens,
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        for layer, layer_score in scores.items():
            log[f"loss_layer_{layer + 1}"] = layer_score.loss.detach()
            if self.report_accuracy:
                log[f"correct_layer_{layer + 1}"] = layer_score.correct
        return loss, sample_size, log

    @staticmethod
    def layer_features(model: Any, net_input: dict[str, Any], weights: list[float]) -> list[Tensor]:
        """Every decoder layer's normalised states [B, L, C]; only the last's are made if only
        they have a weight, and then stand for all."""
        if any(weights[:-1]):
            return model(**net_input, features_only=True, all_layers=True)[1]["layer_features"]
        return [model(**net_input, features_only=True)[0]] * len(weights)

    def drop_ratio(self, model: Any) -> float:
        """The share of tokens to leave out now: none in validation or before the given update."""
        if self.drop_worst_ratio == 0 or not self.training:
            return 0.0
        # fairseq tells the model alone how many updates there were.
        return self.drop_worst_ratio if model.num_updates > self.drop_worst_after else 0.0

    def score(
        self,
        model: Any,
        features: Tensor,
        target: Tensor,
        allowed: Tensor | None,
        confidence: Tensor | None,
        kept: int,
    ) -> LayerScore:
        """One layer's sums; features [M, C], target [M], allowed [M, V], confidence [M].

        ``kept`` tokens make up the loss; likelihood and accuracy are always over all of them.
        """
        logits = model.output_layer(features)
        loss, nll = token_cross_entropy(logits, target, self.label_smoothing, allowed, confidence)
        correct = target.new_zeros(())
        if self.report_accuracy:
            with torch.no_grad():
                if allowed is not None:
                    logits = logits.masked_fill(~allowed, -torch.inf)
                correct = logits.argmax(-1).eq(target).sum()
        return LayerScore(drop_worst(loss, kept).sum(), nll.detach().sum(), correct)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over all workers' batches, each weighted by its tokens or sentences."""

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        sample_size, ntokens = total("sample_size"), total("ntokens")
        if not sample_size:  # only placeholders of workers that had run out of batches
            return
        metrics.log_scalar("loss", total("loss") / sample_size / math.log(2), sample_size, round=3)
        metrics.log_scalar("nll_loss", total("nll_loss") / ntokens / math.log(2), ntokens, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        for key in dict.fromkeys(key for log in logging_outputs for key in log):
            if key.startswith("loss_layer_"):
                value = total(key) / sample_size / math.log(2)
                metrics.log_scalar(key, value, sample_size, priority=1000, round=3)
            elif key.startswith("correct_layer_"):
                name = key.replace("correct", "acc")
                value = 100 * total(key) / ntokens
                metrics.log_scalar(name, value, ntokens, priority=1001, round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True

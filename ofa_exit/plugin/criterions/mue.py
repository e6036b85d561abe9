"""The criterion ``mue_loss``. With ``--layer-weights last`` it is OFA's own loss."""

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
    tokens_kept,
)
from ofa_exit.objectives.layerwise import (
    check_layer_weights,
    parse_layer_weights,
    score_layers,
)
from ofa_exit.plugin.criterions.groups import exit_heads
from ofa_exit.plugin.criterions.target_tokens import TargetTokens
from ofa_exit.plugin.errors import UsageError


@dataclass
class MuELossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "probability mass of all other words"}
    )
    layer_weights: str = field(
        default="uniform",
        metadata={
            "help": "weights of the decoder layers' losses: uniform (MuE), last (plain OFA's loss) "
            "or one number per layer, separated by commas"
        },
    )
    drop_worst_ratio: float = field(
        default=0.0,
        metadata={"help": "share of tokens, those of largest loss, to exclude"},
    )
    drop_worst_after: int = field(
        default=0, metadata={"help": "number of updates before tokens are excluded"}
    )
    report_accuracy: bool = field(
        default=False, metadata={"help": "log the token accuracy of each layer"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


class LayerScore(NamedTuple):
    """Sums over a batch's tokens for one decoder layer, scalar tensors."""

    loss: Tensor
    nll: Tensor
    correct: Tensor


@register_criterion("mue_loss", dataclass=MuELossConfig)
class MuELoss(FairseqCriterion):
    """Weighted mean over decoder layers of OFA's token loss (MuE Eqs. 12 and 13).

    Logged per token (per sentence with ``--sentence-avg``), in bits: ``loss``, its parts
    ``loss_layer_1`` … and ``nll_loss``, the last layer's loss without smoothing, from which ``ppl``
    is computed. ``acc_layer_1`` … are in percent. Layers of weight 0 are not computed.
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
        check_layer_weights(layer_weights)
        self.label_smoothing = label_smoothing
        self.layer_weights = layer_weights
        self.drop_worst_ratio = drop_worst_ratio
        self.drop_worst_after = drop_worst_after
        self.report_accuracy = report_accuracy
        self.sentence_avg = sentence_avg

    def prepare_training(self, model: Any) -> None:
        """Reject a model with exit heads, which this loss would leave untrained."""
        if exit_heads(model):
            raise UsageError(
                "this criterion does not train the exits of --exit-layers: use --criterion "
                "blipee_adversarial, or leave --exit-layers out"
            )

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number that fairseq divides it by, and what to log.

        ``sample["ntokens"]`` must be the number of targets that are not padding. The loss is
        always summed.
        """
        tokens, ntokens = TargetTokens.of(sample, self.padding_idx), sample["ntokens"]
        weights = self.weights(model)
        features = self.layer_features(model, sample["net_input"], list(weights))
        kept = tokens_kept(ntokens, self.drop_ratio(model))
        score = functools.partial(self.score, model, tokens=tokens, kept=kept)
        scores = score_layers({layer: tokens.at(x) for layer, x in features.items()}, score)
        loss = torch.stack([weights[layer] * s.loss for layer, s in scores.items()]).sum()

        sample_size = sample["nsentences"] if self.sentence_avg else kept
        log = {
            "loss": loss.detach(),
            "nll_loss": scores[max(scores)].nll.detach(),
            "ntokens": ntokens,
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        for layer, layer_score in scores.items():
            log[f"loss_layer_{layer}"] = layer_score.loss.detach()
            if self.report_accuracy:
                log[f"correct_layer_{layer}"] = layer_score.correct
        return loss, sample_size, log

    def weights(self, model: Any) -> dict[int, float]:
        """Return the weights of the decoder layers' losses, by layer from 1, where not 0."""
        weights = parse_layer_weights(self.layer_weights, len(model.decoder.layers))
        return {layer: weight for layer, weight in enumerate(weights, start=1) if weight}

    def layer_features(
        self, model: Any, net_input: dict[str, Any], layers: list[int]
    ) -> dict[int, Tensor]:
        """Return decoder layers' states after the final norm, [B, L, C] each, by layer."""
        depth = len(model.decoder.layers)
        if layers == [depth]:
            return {depth: model(**net_input, features_only=True)[0]}
        features = model(**net_input, features_only=True, all_layers=True)[1]["layer_features"]
        return {layer: features[layer - 1] for layer in layers}

    def logits(self, model: Any, layer: int, features: Tensor) -> Tensor:
        """Return the word scores [M, V] of a layer's features [M, C]."""
        return model.output_layer(features)

    def drop_ratio(self, model: Any) -> float:
        """Return the share of tokens to exclude: 0 in validation and before the given update."""
        if self.drop_worst_ratio == 0 or not self.training:
            return 0.0
        return self.drop_worst_ratio if model.num_updates > self.drop_worst_after else 0.0

    def score(
        self, model: Any, layer: int, features: Tensor, tokens: TargetTokens, kept: int
    ) -> LayerScore:
        """Return one layer's sums over M tokens.

        Args:
            features: [M, C].
            kept: number of tokens, those of smallest loss, in the loss. Likelihood and accuracy
                are over all tokens.
        """
        logits = self.logits(model, layer, features)
        loss, nll = token_cross_entropy(
            logits, tokens.target, self.label_smoothing, tokens.allowed, tokens.confidence
        )
        correct = tokens.target.new_zeros(())
        if self.report_accuracy:
            correct = tokens.count_correct(logits)
        return LayerScore(drop_worst(loss, kept).sum(), nll.detach().sum(), correct)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log means over all workers' batches, weighted by their tokens or sentences."""

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        sample_size, ntokens = total("sample_size"), total("ntokens")
        if not sample_size:  # only placeholders of workers without batches
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

"""The criterion ``mue_loss``. With ``--layer-weights last`` it is OFA's own loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Optional

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
from ofa_exit.objectives.projected import projected_cross_entropy
from ofa_exit.plugin.criterions.groups import exit_heads
from ofa_exit.plugin.criterions.self_distillation import (
    AveragedModel,
    SelfDistillationConfig,
    self_distillation,
)
from ofa_exit.plugin.criterions.target_tokens import TargetTokens
from ofa_exit.plugin.errors import UsageError


@dataclass
class TokenLossConfig(FairseqDataclass):
    """Options of all criterions with a token loss on several layers."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "probability mass of all other words"}
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


@dataclass
class MuELossConfig(SelfDistillationConfig, TokenLossConfig):
    layer_weights: str = field(
        default="uniform",
        metadata={
            "help": "weights of the decoder layers' losses: uniform (MuE), rising, the number of "
            "the layer (CALM), last (plain OFA's loss) or one number per layer, separated by commas"
        },
    )


class LayerScore(NamedTuple):
    """Sums over a batch's tokens for one decoder layer, scalar tensors.

    Attributes:
        loss: of labels and teachers together.
        label: cross-entropy with the labels.
        distilled: T²·KL with each teacher, in the order of the teachers.
        nll: negative log-likelihood of the labels, without smoothing and of all tokens.
        correct: number of tokens whose most probable word is the label.
    """

    loss: Tensor
    label: Tensor
    distilled: list[Tensor]
    nll: Tensor
    correct: Tensor


class ExitBatch(NamedTuple):
    """What the losses of a batch are computed from.

    Attributes:
        sample: the batch as fairseq gives it.
        tokens: the M target tokens.
        kept: number of tokens, those of smallest cross-entropy, in the loss.
        features: [M, C] by layer, of those with a loss and of teachers.
        teachers: by layer those that teach it.
        teacher_logits: word scores [M, V] of teachers by layer, without gradient.
        extra: what else the model returned, or a criterion made of it.
    """

    sample: dict[str, Any]
    tokens: TargetTokens
    kept: int
    features: dict[int, Tensor]
    teachers: dict[int, list[int]]
    teacher_logits: dict[int, Tensor]
    extra: dict[str, Any]


@register_criterion("mue_loss", dataclass=MuELossConfig)
class MuELoss(FairseqCriterion):
    """Weighted mean over decoder layers of OFA's token loss (MuE Eqs. 12 and 13).

    With ``--self-distil W`` every layer i before the last also learns from the last one's words:

        L = Σ_i w_i·[(1 - W)·CE_i + W·T²·KL(p_N, p_i)] + w_N·CE_N

    p are probabilities at temperature T over the allowed words. p_N gets no gradient from KL. It
    is the last layer's, or that of a moving average of the model (``average``).

    Logged per token (per sentence with ``--sentence-avg``), in bits: ``loss``, the cross-entropies
    ``loss_layer_1`` …, with teachers ``distil_layer_1`` …, and ``nll_loss``, the last layer's loss
    without smoothing, from which ``ppl`` is computed. ``acc_layer_1`` … are in percent. Layers of
    weight 0 are not computed.
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
        self_distil: float = 0.0,
        self_distil_temperature: float = 1.0,
        self_distil_teacher: str = "last",
        self_distil_decay: float = 0.999,
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
        if self_distil and layer_weights == "last":
            raise ValueError(
                "--self-distil is for the layers before the last, which --layer-weights last does "
                "not train: leave out one of the two"
            )
        self.distillation = self_distillation(
            self_distil, self_distil_temperature, self_distil_teacher, self_distil_decay
        )
        averages = self_distil > 0 and self_distil_teacher == "average"
        self.average_decay = self_distil_decay if averages else None
        self.average: Optional[AveragedModel] = None

    def prepare_training(self, model: Any) -> None:
        """Reject a model with exit heads, which this loss would leave untrained."""
        if exit_heads(model):
            raise UsageError(
                "this criterion does not train the exits of --exit-layers: use the criterion of "
                "their method (docs/training.md), or leave --exit-layers out"
            )

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number that fairseq divides it by, and what to log.

        ``sample["ntokens"]`` must be the number of targets that are not padding. The loss is
        always summed.
        """
        weights = self.weights(model)
        batch = self.batch(model, sample, list(weights))
        scores = self.scores(model, batch, list(weights))
        loss = torch.stack([weights[layer] * s.loss for layer, s in scores.items()]).sum()
        return self.output(batch, scores, loss)

    def batch(self, model: Any, sample: dict[str, Any], layers: list[int]) -> ExitBatch:
        """Run the model, and let teachers score the target tokens.

        Args:
            layers: those with a loss.
        """
        tokens = TargetTokens.of(sample, self.padding_idx)
        teachers = self.teachers(layers, len(model.decoder.layers))
        teaching = {layer for those in teachers.values() for layer in those}
        scored = sorted({*layers, *teaching})
        features, extra = self.layer_features(model, sample["net_input"], scored)
        at_tokens = {layer: tokens.at(x) for layer, x in features.items()}
        return ExitBatch(
            sample,
            tokens,
            self.tokens_kept(model, sample["ntokens"]),
            at_tokens,
            teachers,
            self.teacher_logits(model, sample, tokens, {i: at_tokens[i] for i in teaching}),
            extra,
        )

    def teachers(self, layers: list[int], depth: int) -> dict[int, list[int]]:
        """Return by layer, of those with a loss, the layers that teach it."""
        return self.distillation.teachers(layers, depth)

    def teacher_logits(
        self,
        model: Any,
        sample: dict[str, Any],
        tokens: TargetTokens,
        features: dict[int, Tensor],
    ) -> dict[int, Tensor]:
        """Return the word scores [M, V] of teachers, without gradient, from their features."""
        if self.average_decay is not None and features and self.training:
            if self.average is None:
                self.average = AveragedModel(model, self.average_decay)
            self.average.follow(model)
        with torch.no_grad():
            if self.average is not None and features:
                averaged = tokens.at(self.average.features(sample["net_input"]))
                return dict.fromkeys(features, self.average.logits(averaged))
            return {layer: self.logits(model, layer, x) for layer, x in features.items()}

    def scores(self, model: Any, batch: ExitBatch, layers: list[int]) -> dict[int, LayerScore]:
        """Return the sums of each layer."""
        words = self.shared_words(model, batch)
        if words is not None:
            return self.projected_scores(batch, layers, words)

        def score(layer: int, features: Tensor) -> LayerScore:
            teachers = {j: batch.teacher_logits[j] for j in batch.teachers.get(layer, ())}
            return self.score(model, layer, features, batch.tokens, batch.kept, teachers)

        return score_layers({i: batch.features[i] for i in layers}, score, self.kept_numbers(batch))

    def shared_words(self, model: Any, batch: ExitBatch) -> Optional[Tensor]:
        """Return the matrix [V, C] that scores all layers' words, or None if logits are needed."""
        weight: Tensor = model.decoder.output_projection.weight
        return None if batch.teachers else weight

    def projected_scores(
        self, batch: ExitBatch, layers: list[int], words: Tensor
    ) -> dict[int, LayerScore]:
        """Return what ``score`` returns for each layer, of losses that need no logits."""
        tokens, features = batch.tokens, [batch.features[layer] for layer in layers]
        losses, nll, correct = projected_cross_entropy(
            features, words, tokens.target, self.label_smoothing, tokens.allowed,
            count_correct=self.report_accuracy,
        )  # fmt: skip
        if tokens.confidence is not None:
            losses, nll = losses * tokens.confidence.float(), nll * tokens.confidence.float()
        scores = {}
        for n, layer in enumerate(layers):
            label = drop_worst(losses[n], batch.kept).sum()
            number = tokens.target.new_zeros(()) if correct is None else correct[n].sum()
            scores[layer] = LayerScore(label, label, [], nll[n].sum(), number)
        return scores

    def kept_numbers(self, batch: ExitBatch) -> int:
        """Return how many numbers of a token a layer's loss keeps for the backward pass."""
        teachers = max((len(those) for those in batch.teachers.values()), default=0)
        # Logits; with each teacher its probabilities and the student's logarithms.
        return len(self.task.target_dictionary) * (1 + 2 * teachers)

    def output(
        self, batch: ExitBatch, scores: dict[int, LayerScore], loss: Tensor
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return what ``forward`` does."""
        sample = batch.sample
        sample_size = sample["nsentences"] if self.sentence_avg else batch.kept
        log = {
            "loss": loss.detach(),
            "nll_loss": scores[max(scores)].nll.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        for layer, layer_score in scores.items():
            log[f"loss_layer_{layer}"] = layer_score.label.detach()
            if layer_score.distilled:
                log[f"distil_layer_{layer}"] = torch.stack(layer_score.distilled).detach().sum()
            if self.report_accuracy:
                log[f"correct_layer_{layer}"] = layer_score.correct
        return loss, sample_size, log

    def weights(self, model: Any) -> dict[int, float]:
        """Return the weights of the decoder layers' losses, by layer from 1, where not 0."""
        layers = range(1, len(model.decoder.layers) + 1)
        weights = parse_layer_weights(self.layer_weights, layers)
        return {layer: weight for layer, weight in weights.items() if weight}

    def layer_features(
        self, model: Any, net_input: dict[str, Any], layers: list[int]
    ) -> tuple[dict[int, Tensor], dict[str, Any]]:
        """Return decoder layers' states after the final norm, [B, L, C] each, by layer.

        Returns:
            They, and what else the model returned.
        """
        depth = len(model.decoder.layers)
        if layers == [depth]:
            final, extra = model(**net_input, features_only=True)
            return {depth: final}, extra
        _, extra = model(**net_input, features_only=True, all_layers=True)
        return {layer: extra["layer_features"][layer - 1] for layer in layers}, extra

    def logits(self, model: Any, layer: int, features: Tensor) -> Tensor:
        """Return the word scores [M, V] of a layer's features [M, C]."""
        return model.output_layer(features)

    def drop_ratio(self, model: Any) -> float:
        """Return the share of tokens to exclude: 0 in validation and before the given update."""
        if self.drop_worst_ratio == 0 or not self.training:
            return 0.0
        return self.drop_worst_ratio if model.num_updates > self.drop_worst_after else 0.0

    def tokens_kept(self, model: Any, ntokens: int) -> int:
        """Return how many of a batch's tokens are in the loss."""
        return tokens_kept(ntokens, self.drop_ratio(model))

    def label_loss(
        self, model: Any, logits: Tensor, tokens: TargetTokens, losses: Tensor, kept: int
    ) -> Tensor:
        """Return the summed loss of the labels from the cross-entropy [M] of each token."""
        return drop_worst(losses, kept).sum()

    def score(
        self,
        model: Any,
        layer: int,
        features: Tensor,
        tokens: TargetTokens,
        kept: int,
        teachers: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> LayerScore:
        """Return one layer's sums over M tokens.

        Args:
            features: [M, C].
            kept: number of tokens, those of smallest cross-entropy, in the loss. Likelihood and
                accuracy are over all tokens.
            teachers: word scores [M, V] of this layer's teachers, by layer.
        """
        logits = self.logits(model, layer, features)
        losses, nll = token_cross_entropy(
            logits, tokens.target, self.label_smoothing, tokens.allowed, tokens.confidence
        )
        label = self.label_loss(model, logits, tokens, losses, kept)
        distilled = []
        for teacher_logits in teachers.values():
            divergence = self.distillation.loss(logits, teacher_logits, tokens.allowed)
            if tokens.confidence is not None:
                divergence = divergence * tokens.confidence.float()
            distilled.append(drop_worst(divergence, kept, by=losses).sum())
        correct = tokens.target.new_zeros(())
        if self.report_accuracy:
            correct = tokens.count_correct(logits)
        loss = self.combine(layer, label, dict(zip(teachers, distilled)))
        return LayerScore(loss, label, distilled, nll.detach().sum(), correct)

    def combine(self, layer: int, label: Tensor, distilled: dict[int, Tensor]) -> Tensor:
        """Return the loss of a layer from those of the labels and of its teachers, by layer."""
        return self.distillation.combine(label, list(distilled.values()))

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
            if key.startswith(("loss_layer_", "distil_layer_")):
                value = total(key) / sample_size / math.log(2)
                metrics.log_scalar(key, value, sample_size, priority=1000, round=3)
            elif key.startswith("correct_layer_"):
                name = key.replace("correct", "acc")
                value = 100 * total(key) / ntokens
                metrics.log_scalar(name, value, ntokens, priority=1001, round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True

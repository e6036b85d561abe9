"""The criterion ``blipee_adversarial``: train exits of a frozen model, with a GAN (BLIPEE)."""

import functools
import logging
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn

from ofa_exit.heads.transformer import TransformerHeads
from ofa_exit.objectives.adversarial import (
    count_correct,
    feature_classifier_loss,
    frozen_scores,
    generator_loss,
    relative_spread,
)
from ofa_exit.objectives.cross_entropy import token_cross_entropy
from ofa_exit.objectives.distillation import DIRECTIONS, distillation_loss
from ofa_exit.objectives.layerwise import score_layers
from ofa_exit.plugin.criterions.feature_classifiers import FeatureClassifier
from ofa_exit.plugin.criterions.groups import (
    exit_heads,
    step_groups,
    train_only,
    warn_of_untrained,
)
from ofa_exit.plugin.criterions.own_captions import with_own_captions
from ofa_exit.plugin.criterions.target_tokens import TargetTokens, reject_empty
from ofa_exit.plugin.errors import UsageError

logger = logging.getLogger(__name__)

MODES = ("supervised", "distill")
UPDATES = ("both", "alternate")
TRANSFORMER_GROUP = "exit_transformers"
CLASSIFIER_GROUP = "feature_classifiers"
GROUPS = frozenset((TRANSFORMER_GROUP, CLASSIFIER_GROUP))
COLLAPSE_THRESHOLD = 0.05
"""An exit has collapsed if its variance over tokens is below this share of the final layer's."""
_NO_EXITS = (
    "blipee_adversarial trains transformer heads, and this model has none: add --exit-layers, and "
    "leave --exit-head at transformer"
)


@dataclass
class BlipeeConfig(FairseqDataclass):
    blipee_mode: str = field(
        default="supervised",
        metadata={
            "help": "what exits learn words from: the labels (supervised, BLIPEE Eq. 4) or the "
            "final layer (distill, Eq. 5; rows may then lack captions)"
        },
    )
    blipee_updates: str = field(
        default="both",
        metadata={
            "help": "what an update trains: exits and feature classifiers on the same batch "
            "(both), or one of the two, in turn (alternate)"
        },
    )
    kl_direction: str = field(
        default="exit_to_final",
        metadata={
            "help": "divergence of distillation: exit_to_final, KL(exit, final) as printed in "
            "Eq. 5, or final_to_exit, the usual KL(final, exit)"
        },
    )
    adversarial_weight: float = field(
        default=1.0,
        metadata={"help": "weight of the adversarial loss (Eq. 3); 0 disables feature classifiers"},
    )
    word_weight: float = field(
        default=1.0,
        metadata={"help": "weight of the loss on words (Eq. 4 or 5); 0 disables it"},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "probability mass of all other words"}
    )
    feature_classifier_dim: int = field(
        default=3072,
        metadata={"help": "hidden size of the feature classifiers that exits are trained against"},
    )
    sentence_avg: bool = II("optimization.sentence_avg")


class ExitScore(NamedTuple):
    """Sums over a batch's tokens for one exit, scalar tensors."""

    word: Tensor
    correct: Tensor


@register_criterion("blipee_adversarial", dataclass=BlipeeConfig)
class BlipeeAdversarial(FairseqCriterion):
    """Train the exits of a frozen model (BLIPEE Section 3.3; 3.4 with ``distill``).

    Every update trains the feature classifiers on Eq. 2 and the exit transformers on Eq. 3 plus
    Eq. 4 or 5. Each loss has gradients for its own parameters only, so one backward pass and one
    optimizer step over the sum train both. Losses are summed over exits and tokens. The feature of
    a token is its state after the final norm, the input of the vocabulary projection.

    Differs from the paper: it trains the two alternately, and its released code takes the step of
    the feature classifiers before that of the exits. Here the two steps on a batch are
    simultaneous: exits learn from the feature classifiers as they were before the update. One step
    changes these little, and fairseq's trainer has one backward pass and one step per update. The
    gradient norm is clipped over both together. ``--blipee-updates alternate`` trains the feature
    classifiers in even updates and the exits in odd ones, so each learns from half of the batches.

    With ``distill``, captions may be missing. The decoder is then fed the model's own
    (``with_own_captions``).

    Logged per token: ``loss`` of the exit transformers, ``word_loss``, ``gen_loss`` and
    ``fc_loss``, summed over exits, in bits. For each exit i ``acc_exit_i`` (words) and
    ``fc_acc_exit_i`` (features classified correctly) in percent, and ``spread_exit_i``, the
    variance of its features over tokens as a share of the final layer's. Validation logs all.
    """

    def __init__(
        self,
        task: Any,
        blipee_mode: str,
        blipee_updates: str,
        kl_direction: str,
        adversarial_weight: float,
        word_weight: float,
        label_smoothing: float,
        feature_classifier_dim: int,
        sentence_avg: bool,
    ) -> None:
        super().__init__(task)
        for flag, value, choices in (
            ("--blipee-mode", blipee_mode, MODES),
            ("--blipee-updates", blipee_updates, UPDATES),
            ("--kl-direction", kl_direction, DIRECTIONS),
        ):
            if value not in choices:
                raise ValueError(f"{flag} {value!r}: choose from {', '.join(choices)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--label-smoothing is {label_smoothing}; give 0 or more, below 1")
        if label_smoothing and blipee_mode == "distill":
            raise ValueError("--label-smoothing needs --blipee-mode supervised")
        if feature_classifier_dim < 1:
            raise ValueError(f"--feature-classifier-dim {feature_classifier_dim}: give at least 1")
        for flag, weight in (
            ("--adversarial-weight", adversarial_weight),
            ("--word-weight", word_weight),
        ):
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"{flag} is {weight}; give a finite number of at least 0")
        if adversarial_weight == word_weight == 0:
            raise ValueError("--adversarial-weight and --word-weight are both 0: nothing to train")
        self.distill = self.trains_without_labels = blipee_mode == "distill"
        self.alternate = blipee_updates == "alternate"
        self.kl_direction = kl_direction
        self.adversarial_weight = adversarial_weight
        self.word_weight = word_weight
        self.label_smoothing = label_smoothing
        self.feature_classifier_dim = feature_classifier_dim
        self.sentence_avg = sentence_avg

    def prepare_training(self, model: Any) -> None:
        """Add a feature classifier for each exit, and freeze everything but these and the exits."""
        heads, hidden = exit_heads(model), self.feature_classifier_dim
        if not isinstance(heads, TransformerHeads):
            raise UsageError(_NO_EXITS)
        model.feature_classifiers = nn.ModuleDict(
            {layer: FeatureClassifier(model.cfg.encoder_embed_dim, hidden) for layer in heads}
        )
        sizes = train_only(
            model, {TRANSFORMER_GROUP: heads, CLASSIFIER_GROUP: model.feature_classifiers}
        )
        trained, total = sum(sizes.values()), sum(p.numel() for p in model.parameters())
        logger.info(
            "exits are trained, the backbone is frozen: %s of %s parameters (%.1f %%): exit "
            "transformers %s, feature classifiers %s",
            *(f"{trained:,}", f"{total:,}", 100 * trained / total),
            *(f"{size:,}" for size in sizes.values()),
        )

    def get_groups_for_update(self, num_updates: int) -> set[str]:
        """Return the parameter groups that the next update trains."""
        if self.adversarial_weight == 0:
            return {TRANSFORMER_GROUP}
        if self.alternate:
            return {TRANSFORMER_GROUP if num_updates % 2 else CLASSIFIER_GROUP}
        return set(GROUPS)

    def optimizer_step(self, optimizer: Any, update_num: int) -> None:
        groups = self.get_groups_for_update(update_num)
        if groups == GROUPS:
            optimizer.step()
        else:
            step_groups(optimizer, groups)

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number that fairseq divides it by, and what to log.

        The loss is the sum over the groups that are being trained, in validation the exit
        transformers' alone.
        """
        reject_empty(sample)
        if not exit_heads(model):
            raise UsageError(_NO_EXITS)
        warn_of_untrained(model)
        adversarial = self.adversarial_weight > 0
        if adversarial and not hasattr(model, "feature_classifiers"):
            raise ValueError("the model has no feature classifiers: call prepare_training(model)")
        if self.distill:
            sample = with_own_captions(self.task, model, sample)
        ntokens = sample["ntokens"]
        targets = TargetTokens.of(sample, self.padding_idx)
        final, extra = model(**sample["net_input"], exit_features=True)
        final = targets.at(final)  # [M, C]
        features = {layer: targets.at(x) for layer, x in extra["exit_features"].items()}

        groups = self.get_groups_for_update(model.num_updates) if self.training else GROUPS
        losses: dict[str, Tensor] = {}
        log: dict[str, Any] = {
            "ntokens": ntokens,
            "nsentences": sample["nsentences"],
            "sample_size": sample["nsentences"] if self.sentence_avg else ntokens,
        }
        if adversarial and CLASSIFIER_GROUP in groups:
            fc_loss = self.classifier_losses(model, final, features, log)
            log["fc_loss"], log["fc_tokens"] = fc_loss.detach(), ntokens
            losses[CLASSIFIER_GROUP] = fc_loss
        if TRANSFORMER_GROUP in groups:
            losses[TRANSFORMER_GROUP] = self.transformer_losses(
                model, targets, final, features, log
            )
            log["loss_size"] = log["sample_size"]
            log["exit_tokens"] = ntokens
        loss = losses[TRANSFORMER_GROUP if TRANSFORMER_GROUP in losses else CLASSIFIER_GROUP]
        log["loss"] = loss.detach()
        if self.training:
            loss = torch.stack(list(losses.values())).sum()
            # Data-parallel training waits for a gradient of every parameter. ``optimizer_step``
            # removes those of the other group.
            idle = [p for p in model.parameters() if p.requires_grad]
            idle = [p for p in idle if p.param_group not in groups]
            loss = loss + 0.0 * sum(p.float().sum() for p in idle)
        return loss, log["sample_size"], log

    def classifier_losses(
        self, model: Any, final: Tensor, features: dict[int, Tensor], log: dict[str, Any]
    ) -> Tensor:
        """Return Eq. 2 summed over exits and tokens, for features [M, C]."""
        losses = []
        for layer, x in features.items():
            classifier = model.feature_classifiers[str(layer)]
            scores = classifier(final), classifier(x.detach())
            losses.append(feature_classifier_loss(*scores).sum())
            log[f"told_apart_exit_{layer}"] = count_correct(*scores)
        return torch.stack(losses).sum()

    def transformer_losses(
        self,
        model: Any,
        targets: TargetTokens,
        final: Tensor,
        features: dict[int, Tensor],
        log: dict[str, Any],
    ) -> Tensor:
        """Return Eq. 3 plus Eq. 4 or 5, weighted and summed over exits and tokens."""
        final_logits = None
        if self.distill and self.word_weight > 0:
            with torch.no_grad():
                final_logits = model.output_layer(final)
        score = functools.partial(
            self.score_words, model, targets=targets, final_logits=final_logits
        )
        # Logits; distillation keeps probabilities and logarithms, too.
        numbers = len(self.task.target_dictionary) * (1 if final_logits is None else 3)
        scores = score_layers(features, score, numbers)
        word = torch.stack([s.word for s in scores.values()]).sum()
        generator = word.new_zeros(())
        for layer, x in features.items():
            log[f"correct_exit_{layer}"] = scores[layer].correct
            if x.size(0) > 1:
                log[f"spread_exit_{layer}"] = relative_spread(x.detach(), final) * x.size(0)
                log["spread_tokens"] = x.size(0)
            if self.adversarial_weight > 0:
                classifier = model.feature_classifiers[str(layer)]
                generator = generator + generator_loss(frozen_scores(classifier, x)).sum()
        log["word_loss"], log["gen_loss"] = word.detach(), generator.detach()
        return self.word_weight * word + self.adversarial_weight * generator

    def score_words(
        self,
        model: Any,
        layer: int,
        features: Tensor,
        targets: TargetTokens,
        final_logits: Optional[Tensor],
    ) -> ExitScore:
        """Return one exit's loss on words and its correct words, for features [M, C]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.word_weight > 0):
            logits = model.output_layer(features)
            if final_logits is None:
                losses, _ = token_cross_entropy(
                    logits,
                    targets.target,
                    self.label_smoothing,
                    targets.allowed,
                    targets.confidence,
                )
            else:
                losses = distillation_loss(logits, final_logits, self.kl_direction, targets.allowed)
        return ExitScore(losses.sum(), targets.count_correct(logits))

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log means over all workers' batches. An update logs the values of its group."""

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        if not total("sample_size"):  # only placeholders of workers without batches
            return
        # An update of the classifiers has no loss of the exits: show its own, with weight 0.
        size = total("loss_size")
        shown = total("loss") / (size or total("sample_size")) / math.log(2)
        metrics.log_scalar("loss", shown, size, round=3)
        exit_tokens, fc_tokens = total("exit_tokens"), total("fc_tokens")
        spread_tokens = total("spread_tokens")
        if exit_tokens:
            for key in ("word_loss", "gen_loss"):
                value = total(key) / exit_tokens / math.log(2)
                metrics.log_scalar(key, value, exit_tokens, round=3)
        if fc_tokens:
            value = total("fc_loss") / fc_tokens / math.log(2)
            metrics.log_scalar("fc_loss", value, fc_tokens, round=3)
        for key in dict.fromkeys(key for log in logging_outputs for key in log):
            name, _, layer = key.rpartition("_")
            if name == "correct_exit":
                value = 100 * total(key) / exit_tokens
                metrics.log_scalar(f"acc_exit_{layer}", value, exit_tokens, 1001, round=2)
            elif name == "told_apart_exit":
                value = 50 * total(key) / fc_tokens
                metrics.log_scalar(f"fc_acc_exit_{layer}", value, fc_tokens, 1002, round=2)
            elif name == "spread_exit":
                value = total(key) / spread_tokens
                metrics.log_scalar(f"spread_exit_{layer}", value, spread_tokens, 1003, round=3)
                if value < COLLAPSE_THRESHOLD:
                    warn_of_collapse(layer)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


@functools.cache
def warn_of_collapse(layer: str) -> None:
    """Warn once per exit and process."""
    logger.warning(
        "the exit after layer %s has collapsed: its features hardly differ between tokens (less "
        "than %g of the final layer's variance). Raise --word-weight, change --blipee-mode, lower "
        "--adversarial-weight or --lr, or resume from an earlier checkpoint",
        layer,
        COLLAPSE_THRESHOLD,
    )

"""The criteria ``multi_exit_loss`` and ``exit_heads_loss``: a word loss on every exit head."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from ofa_exit.objectives.distillation import MODES, Distillation
from ofa_exit.objectives.layerwise import parse_layer_weights
from ofa_exit.plugin.criterions.groups import (
    exit_heads,
    train_only,
    warn_of_untrained,
    without_dropout,
)
from ofa_exit.plugin.criterions.mue import ExitBatch, MuELoss, TokenLossConfig
from ofa_exit.plugin.criterions.self_distillation import check_temperature
from ofa_exit.plugin.criterions.target_tokens import TargetTokens
from ofa_exit.plugin.errors import UsageError, usage_errors

logger = logging.getLogger(__name__)

HEADS_GROUP = "exit_heads"


@dataclass
class DistillationConfig(FairseqDataclass):
    distil: str = field(
        default="none",
        metadata={
            "help": "what exits learn from in addition to the labels: none, final (the last layer) "
            "or mutual (every other exit)"
        },
    )
    distil_temperature: float = field(
        default=1.0, metadata={"help": "temperature of both distributions in --distil"}
    )


@dataclass
class MultiExitConfig(DistillationConfig, TokenLossConfig):
    distil_weight: float = field(
        default=1.0,
        metadata={"help": "weight of --distil for each teacher; that of the labels is 1"},
    )
    layer_weights: str = field(
        default="rising",
        metadata={
            "help": "weights of the losses of the exit heads and of the last layer: rising, the "
            "number of the layer (PABEE), uniform, or one number for each, separated by commas"
        },
    )


@register_criterion("multi_exit_loss", dataclass=MultiExitConfig)
class MultiExitLoss(MuELoss):
    """Train backbone and exit heads together: weighted mean of their token losses.

        L = Σ_i w_i·CE_i / Σ_i w_i

    over the layers i with a head and the last. ``rising`` weights, w_i = i, are PABEE's (Zhou et
    al. 2020, after the authors' code), ``uniform`` ones DEED's. Without ``--exit-layers`` every
    layer has the shared head.

    With ``--distil`` every exit i also learns from its teachers j: the last layer (``final``) or
    every other exit (``mutual``). CE_i becomes

        CE_i + b·Σ_j T²·KL(p_j, p_i)

    with b = ``--distil-weight`` and p at temperature T over the allowed words. p_j gets no
    gradient. Tokens that drop-worst excludes are excluded from both parts.

    Logs as ``mue_loss``.
    """

    train_backbone = True
    returns_layers = False
    """Whether the model also returns every layer's states, as "layer_states"."""
    heads_learn_otherwise = False
    """Whether a head whose words have no weight still learns, from another part of the loss."""

    def __init__(
        self, cfg: Any, task: Any, layer_weights: str = "uniform", distil_weight: float = 1.0
    ) -> None:
        super().__init__(
            task,
            cfg.label_smoothing,
            layer_weights,
            cfg.drop_worst_ratio,
            cfg.drop_worst_after,
            cfg.report_accuracy,
            cfg.sentence_avg,
        )
        if cfg.distil not in MODES:
            raise ValueError(f"--distil {cfg.distil!r}: choose from {', '.join(MODES)}")
        check_temperature("--distil-temperature", cfg.distil_temperature)
        if not 0 < distil_weight < math.inf:
            raise ValueError(f"--distil-weight is {distil_weight}; give a number above 0")
        self.distillation = Distillation(cfg.distil, cfg.distil_temperature, distil_weight)

    @usage_errors()
    def prepare_training(self, model: Any) -> None:
        """Reject weights that do not match the model's exits, and heads of another loss."""
        heads = exit_heads(model)
        if not heads.learns_from_words:
            raise UsageError(
                "these exit heads have weights that no loss on words trains: use the criterion of "
                "their method (--exit-head meta: calm_meta_loss)"
            )
        weights = self.weights(model)
        idle = [layer for layer in heads.layers if layer not in weights] if heads.trained else []
        if idle and not self.heads_learn_otherwise:
            # Data-parallel training waits for a gradient of every parameter.
            raise UsageError(
                f"--layer-weights {self.layer_weights} does not train the exit heads after decoder "
                f"layers {','.join(map(str, idle))}: give them positive weights, or leave them out "
                "of --exit-layers"
            )

    def weights(self, model: Any) -> dict[int, float]:
        layers = [*exit_heads(model).layers, len(model.decoder.layers)]
        weights = parse_layer_weights(self.layer_weights, layers)
        return {layer: weight for layer, weight in weights.items() if weight}

    def layer_features(
        self, model: Any, net_input: dict[str, Any], layers: list[int]
    ) -> tuple[dict[int, Tensor], dict[str, Any]]:
        """Return the heads' features and the last layer's normed states, [B, L, C], by layer."""
        final, extra = model(
            **net_input,
            exit_features=True,
            train_backbone=self.train_backbone,
            return_layers=self.returns_layers,
        )
        features = {**extra["head_features"], len(model.decoder.layers): final}
        return {layer: features[layer] for layer in layers}, {**extra, "final": final}

    def teacher_logits(
        self,
        model: Any,
        sample: dict[str, Any],
        tokens: TargetTokens,
        features: dict[int, Tensor],
    ) -> dict[int, Tensor]:
        """Return the word scores [M, V] of teachers, without gradient and without dropout."""
        with without_dropout(exit_heads(model)):
            return super().teacher_logits(model, sample, tokens, features)

    def shared_words(self, model: Any, batch: ExitBatch) -> None:
        """Return None: every exit has its head."""

    def logits(self, model: Any, layer: int, features: Tensor) -> Tensor:
        decoder = model.decoder
        if layer == len(decoder.layers):
            return model.output_layer(features)
        return decoder.exit_heads.scores(layer, features, None, decoder.shared_scores)


@dataclass
class ExitHeadsConfig(MultiExitConfig):
    layer_weights: str = field(
        default="uniform",
        metadata={
            "help": "weights of the heads' losses, scaled to a mean of 1: uniform (DeeBERT's sum), "
            "rising, or one number for each head, separated by commas"
        },
    )


@register_criterion("exit_heads_loss", dataclass=ExitHeadsConfig)
class ExitHeadsLoss(MultiExitLoss):
    """Train exit heads on a frozen backbone: L = Σ_i CE_i over the heads.

    The second stage of DeeBERT (Xin et al. 2020). The backbone is kept in eval mode.

    With ``--distil final`` the loss is Σ_i [CE_i + T²·KL(p_N, p_i)]: LeeBLIP, a baseline of the
    BLIPEE paper, which says of it only that exits learn from the final layer and from hard labels.

    Reconstruction: weights of 1 and T = 1.

    Differs from the authors' code, where the frozen backbone's dropout is on.
    """

    train_backbone = False

    @usage_errors()
    def prepare_training(self, model: Any) -> None:
        """Freeze everything but the heads."""
        heads = exit_heads(model)
        if not heads.trained:
            raise UsageError(
                "exit_heads_loss trains exit heads, and this model has none with weights: add "
                "--exit-layers all and --exit-head linear, or use --criterion multi_exit_loss"
            )
        super().prepare_training(model)
        (trained,) = train_only(model, {HEADS_GROUP: heads}).values()
        total = sum(parameter.numel() for parameter in model.parameters())
        logger.info(
            "exit heads are trained, the backbone is frozen: %s of %s parameters (%.1f %%)",
            *(f"{trained:,}", f"{total:,}", 100 * trained / total),
        )

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        warn_of_untrained(model)
        return super().forward(model, sample, reduce)

    def weights(self, model: Any) -> dict[int, float]:
        layers = exit_heads(model).layers
        weights = parse_layer_weights(self.layer_weights, layers)
        return {layer: w * len(layers) for layer, w in weights.items() if w}

"""The criterion ``leebert_loss``: exits teach each other, with learned weights of all terms."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn
from torch.func import functional_call

from ofa_exit.objectives.bilevel import Parameters, look_ahead
from ofa_exit.objectives.layerwise import score_layers
from ofa_exit.plugin.criterions.groups import exit_heads, without_dropout
from ofa_exit.plugin.criterions.loss_weights import LossWeights
from ofa_exit.plugin.criterions.mue import ExitBatch, LayerScore, TokenLossConfig
from ofa_exit.plugin.criterions.multi_exit import DistillationConfig, MultiExitLoss
from ofa_exit.plugin.criterions.target_tokens import TargetTokens
from ofa_exit.plugin.errors import UsageError, usage_errors

LEARNED = ("none", "single", "bilevel", "cross")
CROSS_LEVEL = 0.5
"""γ, the weight of the inner loss in the gradient of ``cross``."""


@dataclass
class LeeBertConfig(DistillationConfig, TokenLossConfig):
    distil: str = field(
        default="mutual",
        metadata={
            "help": "what exits learn from in addition to the labels: none, final (the last layer) "
            "or mutual (every other exit, LeeBERT)"
        },
    )
    learned_weights: str = field(
        default="cross",
        metadata={
            "help": "how the weights of the loss's terms are learned: none, all are 1; single, on "
            "the training loss; bilevel, on the held-out loss after a step; cross, on both "
            "(LeeBERT)"
        },
    )
    weights_lr: float = field(
        default=1e-3, metadata={"help": "learning rate of the weights, which have their own Adam"}
    )
    weights_interval: int = field(
        default=10,
        metadata={"help": "update the loss weights every this many updates (bilevel and cross)"},
    )
    inner_lr: float = field(
        default=0.01,
        metadata={
            "help": "step size of the one gradient step on the heads that bilevel and cross look "
            "ahead through"
        },
    )
    ddp_backend: str = II("distributed_training.ddp_backend")
    distributed_world_size: int = II("distributed_training.distributed_world_size")


class Classifiers(nn.Module):
    """The parts of a model that turn features into word scores. Calls what it is given."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.decoder
        self.heads = exit_heads(model)
        self.norm, self.projection = decoder.layer_norm, decoder.output_projection

    def forward(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)


def first_half(image_keys: Tensor) -> Tensor:
    """Return whether rows are in the first half of the data, by their image: Bool [B].

    Args:
        image_keys: Long [B], equal for rows of one image, so that they share a half.
    """
    return (image_keys * 2654435761 // 2**16) % 2 == 0


@register_criterion("leebert_loss", dataclass=LeeBertConfig)
class LeeBertLoss(MultiExitLoss):
    """Train backbone and exits together; exits teach each other, and the weights are learned.

        L_in = Σ_i a_i·CE_i + Σ_i Σ_j≠i b_ij·T²·KL(p_j, p_i),  (a, b) = K·softmax(α)

    over the N exits, the last layer included; p_j gets no gradient, and K is the number of terms.
    Equal weights are 1 each. α is learned (``--learned-weights``) from

        none      nothing
        single    ∇_α L_in
        bilevel   ∇_α L_out(φ - ξ·∇_φ L_in)
        cross     ∇_α L_out(φ - ξ·∇_φ L_in) + γ·∇_α L_in,  γ = 0.5

    with an Adam of its own. ``single`` prefers easy terms: it lowers its loss by shifting weight
    from terms with a large loss to others, whether or not this helps. L_out = Σ_i CE_i / N has no
    learned weights, for the same reason. It is also the loss in validation. One step changes L_out
    little, so the second part of ``cross`` is usually the larger one.

    L_in of bilevel and cross is on the rows of one half of the data, L_out on those of the other.
    A hash of the image says which, so that all captions of an image are in one half. All target
    tokens count here, also those that drop-worst excludes.
    φ are the heads with the decoder's final norm and projection, over features that do not move.
    The step is plain gradient descent in float32, on means over tokens, and its effect is exact
    (``objectives.bilevel``). Every ``--weights-interval`` updates this takes two further passes
    through the classifiers, and a few copies of their weights.

    Reconstruction: LeeBERT (Zhu 2021) has published no code. The paper's abstract says that every
    exit learns from every other, that the weights of all terms are learned in a bi-level problem,
    and that the cross-level update of the weights takes gradients of both levels and both halves
    of the training data. The rest is filled in here: softmax and its scale, γ, the step over the
    classifiers alone, and halves by image.

    Differs from the paper: the halves do not alternate. Both halves of a batch train the model at
    every update, so that no row is left out, and L_out is always on the same half.

    Logs as ``multi_exit_loss``, and the weights a_i as ``weight_layer_i``.
    """

    def __init__(self, cfg: LeeBertConfig, task: Any) -> None:
        super().__init__(cfg, task)
        learned = cfg.learned_weights
        if learned not in LEARNED:
            raise ValueError(f"--learned-weights {learned!r}: choose from {', '.join(LEARNED)}")
        for flag, rate in (("--weights-lr", cfg.weights_lr), ("--inner-lr", cfg.inner_lr)):
            if not 0 < rate < math.inf:
                raise ValueError(f"{flag} is {rate}; give a number above 0")
        if cfg.weights_interval < 1:
            raise ValueError(f"--weights-interval is {cfg.weights_interval}; give at least 1")
        # DistributedDataParallel takes no module whose parameters all need no gradient, as α.
        is_torchs = str(cfg.ddp_backend) in ("c10d", "pytorch_ddp")
        if learned != "none" and is_torchs and cfg.distributed_world_size > 1:
            raise ValueError(
                f"--learned-weights {learned} in several processes needs --ddp-backend legacy_ddp, "
                f"not {cfg.ddp_backend}"
            )
        self.learned = learned
        self.weights_lr, self.inner_lr = cfg.weights_lr, cfg.inner_lr
        self.interval = cfg.weights_interval
        self.terms: list[tuple[int, int]] = []  # (student, teacher); (i, i) for the labels
        self.loss_weights: Optional[LossWeights] = None

    @usage_errors()
    def prepare_training(self, model: Any) -> None:
        """Create the weights of this model's terms."""
        heads = exit_heads(model)
        if self.learned != "none" and not heads.trained:
            raise UsageError(
                f"--learned-weights {self.learned} is for exits with weights, and this model has "
                "none: add --exit-layers all and --exit-head linear, or --learned-weights none"
            )
        super().prepare_training(model)
        exits = list(self.weights(model))
        teachers = self.distillation.teachers(exits, exits[-1])
        self.terms = [(i, j) for i in exits for j in [i, *teachers.get(i, [])]]
        if self.learned != "none":
            self.loss_weights = LossWeights(len(self.terms), self.weights_lr)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the weights. They stay equal where the checkpoint is of another criterion."""
        return super().load_state_dict(state_dict, *args, **kwargs) if state_dict else None

    def weights(self, model: Any) -> dict[int, float]:
        """Return the factors of the layers' losses: 1, and in validation 1 / N."""
        exits = super().weights(model)
        return dict.fromkeys(exits, 1.0) if self.training else exits

    def teachers(self, layers: list[int], depth: int) -> dict[int, list[int]]:
        return super().teachers(layers, depth) if self.training else {}

    def combine(self, layer: int, label: Tensor, distilled: dict[int, Tensor]) -> Tensor:
        if self.loss_weights is None or not self.training:
            return super().combine(layer, label, distilled)
        weights = self.loss_weights()
        parts = {layer: label, **distilled}
        return torch.stack(
            [weights[self.terms.index((layer, j))] * part for j, part in parts.items()]
        ).sum()

    def scores(self, model: Any, batch: ExitBatch, layers: list[int]) -> dict[int, LayerScore]:
        """Return the sums of each layer; in training, also add to the gradient of α."""
        scores = super().scores(model, batch, layers)
        if self.loss_weights is not None and self.training:
            if self.learned == "single":
                self.loss_weights.add_gradient(terms(scores).detach() / batch.kept)
            elif model.num_updates % self.interval == 0:
                self.loss_weights.add_gradient(self.outer_slopes(model, batch))
        return scores

    def outer_slopes(self, model: Any, batch: ExitBatch) -> Tensor:
        """Return the derivatives [K] in the weights that bilevel and cross go by."""
        assert self.loss_weights is not None
        classifiers = Classifiers(model)
        features = {layer: x.detach().float() for layer, x in batch.features.items()}
        (tokens, count), (held_out, held_out_count) = halves(batch)

        def scored(
            parameters: Parameters, tokens: TargetTokens, teachers: dict[int, list[int]]
        ) -> dict[int, LayerScore]:
            def score(layer: int, x: Tensor) -> LayerScore:
                logits = {j: batch.teacher_logits[j] for j in teachers.get(layer, ())}
                arguments = (self.score, model, layer, x, tokens, len(x), logits)
                return functional_call(classifiers, dict(parameters), arguments)

            return score_layers(features, score, self.kept_numbers(batch))

        def inner(parameters: Parameters) -> Tensor:
            return terms(scored(parameters, tokens, batch.teachers)) / count

        def outer(parameters: Parameters) -> Tensor:
            labels = [s.label for s in scored(parameters, held_out, {}).values()]
            return torch.stack(labels).mean() / held_out_count

        # Dropout would make another function of each pass through the classifiers.
        no_autocast = torch.autocast(count.device.type, enabled=False)
        with no_autocast, without_dropout(exit_heads(model)):
            losses, slopes = look_ahead(
                inner,
                outer,
                {name: p.detach().float() for name, p in classifiers.named_parameters()},
                self.loss_weights(),
                self.inner_lr,
            )
        return slopes + CROSS_LEVEL * losses if self.learned == "cross" else slopes

    def optimizer_step(self, optimizer: Any, update_num: int) -> None:
        optimizer.step()
        if self.loss_weights is not None:
            self.loss_weights.step()

    def output(
        self, batch: ExitBatch, scores: dict[int, LayerScore], loss: Tensor
    ) -> tuple[Tensor, int, dict[str, Any]]:
        loss, sample_size, log = super().output(batch, scores, loss)
        if self.loss_weights is not None and self.training:
            weights = self.loss_weights()
            for layer in scores:
                weight = weights[self.terms.index((layer, layer))]
                log[f"weight_layer_{layer}"] = weight * sample_size  # logs of workers are summed
        return loss, sample_size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log as ``multi_exit_loss``, and the weights."""
        super().reduce_metrics(logging_outputs)

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        sample_size = total("sample_size")
        for key in dict.fromkeys(key for log in logging_outputs for key in log):
            if key.startswith("weight_layer_") and sample_size:
                value = total(key) / sample_size
                metrics.log_scalar(key, value, sample_size, priority=1002, round=4)


def terms(scores: dict[int, LayerScore]) -> Tensor:
    """Return the terms of the loss, [K]: of each layer those of the labels and of its teachers."""
    return torch.stack([part for s in scores.values() for part in (s.label, *s.distilled)])


def halves(batch: ExitBatch) -> list[tuple[TargetTokens, Tensor]]:
    """Return the target tokens with those of one half of the data alone, and their number.

    The other tokens stay, with a confidence of 0: so the host need not know how many there are.
    """
    tokens, sample = batch.tokens, batch.sample
    rows = tokens.rows // sample["target"].size(1)  # of the batch, by token
    is_first = first_half(sample["image_keys"]).index_select(0, rows)  # [M]
    found = []
    for mask in (is_first, ~is_first):
        confidence = mask.float()
        if tokens.confidence is not None:
            confidence = confidence * tokens.confidence.float()
        half = dataclasses.replace(tokens, confidence=confidence)
        found.append((half, mask.sum().clamp(min=1)))
    return found

"""The criterion ``deecap_loss``: word losses on imitation heads, and imitation itself (DeeCap)."""

from typing import Any, cast

from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from torch import Tensor

from ofa_exit.heads.imitation import ImitationHeads
from ofa_exit.objectives.imitation import imitation_loss
from ofa_exit.plugin.criterions.groups import exit_heads
from ofa_exit.plugin.criterions.mue import ExitBatch, LayerScore
from ofa_exit.plugin.criterions.multi_exit import MultiExitConfig, MultiExitLoss
from ofa_exit.plugin.errors import UsageError


@register_criterion("deecap_loss", dataclass=MultiExitConfig)
class DeeCapLoss(MultiExitLoss):
    """Train backbone and imitation heads together (Fei et al. 2022, after the authors' code).

        L = Σ_i i·CE_i / Σ_i i + mean over i < N of mean over j > i of 1 - cos(û_j|i, sg[u_j])

    averaged over the target tokens. ``--layer-weights`` gives other weights than 1 … N. Logs as
    ``multi_exit_loss``, and ``imitation_loss``, the second term per token. ``loss`` is the sum of
    both, divided by ln 2.

    Differs from the authors' code: CE_N is the plain model's loss, and u_N has no weights, see
    ``heads.imitation``.
    """

    returns_layers = True
    heads_learn_otherwise = True  # by imitation

    def prepare_training(self, model: Any) -> None:
        """Reject a model without imitation heads, and weights that are none of its exits."""
        if not isinstance(exit_heads(model), ImitationHeads):
            raise UsageError(
                "deecap_loss trains imitation heads, and this model has none: add --exit-layers "
                "all and --exit-head imitation (or imitation_all)"
            )
        super().prepare_training(model)
        if not self.weights(model).keys() & set(exit_heads(model).layers):
            raise UsageError(
                f"--layer-weights {self.layer_weights} trains no imitation head on words, so the "
                "gate between imitated states would stay untrained: give a head a positive weight"
            )

    def batch(self, model: Any, sample: dict[str, Any], layers: list[int]) -> ExitBatch:
        """Run the model, and compare imitated with real states at the M target tokens."""
        batch = super().batch(model, sample, layers)
        heads, last = cast(Any, exit_heads(model)), len(model.decoder.layers)
        pooled = {  # u_i, [M, C] each
            layer: heads.pool(layer, batch.tokens.at(batch.extra["layer_states"][layer]))
            for layer in range(1, last)
        }
        pooled[last] = batch.tokens.at(batch.extra["final"]).tanh()
        return batch._replace(extra={"imitation": imitation_loss(pooled, heads.imitate)})

    def output(
        self, batch: ExitBatch, scores: dict[int, LayerScore], loss: Tensor
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number that fairseq divides it by, and what to log."""
        imitation = batch.extra["imitation"]  # [M]
        # Summed over as many tokens as the word losses are, see --drop-worst-ratio.
        loss, sample_size, log = super().output(batch, scores, loss + imitation.mean() * batch.kept)
        log["imitation_loss"] = imitation.detach().sum()
        return loss, sample_size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log what ``multi_exit_loss`` does, and the imitation loss per token."""
        super().reduce_metrics(logging_outputs)
        ntokens = sum(log.get("ntokens", 0) for log in logging_outputs)
        if ntokens:
            value = sum(log.get("imitation_loss", 0) for log in logging_outputs) / ntokens
            metrics.log_scalar("imitation_loss", value, ntokens, round=4)

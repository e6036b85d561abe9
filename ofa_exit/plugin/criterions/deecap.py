"""The criterion ``deecap_loss``: word losses on imitation heads, and imitation itself (DeeCap)."""

from typing import Any, cast

from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from torch import Tensor

from ofa_exit.heads.imitation import ImitationHeads
from ofa_exit.objectives.cross_entropy import tokens_kept
from ofa_exit.objectives.imitation import imitation_loss
from ofa_exit.plugin.criterions.groups import exit_heads
from ofa_exit.plugin.criterions.multi_exit import MultiExitConfig, MultiExitLoss
from ofa_exit.plugin.criterions.target_tokens import TargetTokens
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

    _states: dict[int, Tensor]
    """What the pass in ``forward`` has for the imitation: states [B, L, C] by layer."""

    def prepare_training(self, model: Any) -> None:
        """Reject a model without imitation heads, and weights that are none of its exits."""
        if not isinstance(exit_heads(model), ImitationHeads):
            raise UsageError(
                "deecap_loss trains imitation heads, and this model has none: add --exit-layers "
                "all and --exit-head imitation (or imitation_all)"
            )
        super().prepare_training(model)

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number that fairseq divides it by, and what to log."""
        words, sample_size, log = super().forward(model, sample, reduce)
        tokens, heads = TargetTokens.of(sample, self.padding_idx), cast(Any, exit_heads(model))
        pooled = {}  # u_i of the M target tokens, [M, C] each
        for layer, states in self._states.items():
            at_tokens = tokens.at(states)
            is_last = layer == len(model.decoder.layers)
            pooled[layer] = at_tokens.tanh() if is_last else heads.pool(layer, at_tokens)
        self._states = {}
        imitation = imitation_loss(pooled, heads.imitate)  # [M]
        # Summed over as many tokens as the word losses are, see --drop-worst-ratio.
        loss = words + imitation.mean() * tokens_kept(len(imitation), self.drop_ratio(model))
        log["loss"], log["imitation_loss"] = loss.detach(), imitation.detach().sum()
        return loss, sample_size, log

    def layer_features(
        self, model: Any, net_input: dict[str, Any], layers: list[int]
    ) -> dict[int, Tensor]:
        final, extra = model(
            **net_input, exit_features=True, train_backbone=True, return_layers=True
        )
        last = len(model.decoder.layers)
        self._states = {**dict(enumerate(extra["layer_states"][1:-1], start=1)), last: final}
        features = {**extra["head_features"], last: final}
        return {layer: features[layer] for layer in layers}

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log what ``multi_exit_loss`` does, and the imitation loss per token."""
        super().reduce_metrics(logging_outputs)
        ntokens = sum(log.get("ntokens", 0) for log in logging_outputs)
        if ntokens:
            value = sum(log.get("imitation_loss", 0) for log in logging_outputs) / ntokens
            metrics.log_scalar("imitation_loss", value, ntokens, round=4)

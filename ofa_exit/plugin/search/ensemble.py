"""fairseq's ensemble with a check for scores that are not numbers."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor


class WatchedEnsemble(EnsembleModel):
    """fairseq's ensemble that marks sentences whose word scores are NaN.

    Stock beam search treats such words as impossible and continues, until it returns a wrong
    sentence or an assertion fails. The check reads one score per hypothesis, on the device.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__(models)
        self.broken: Optional[Tensor] = None
        """Sentences of the last batch with NaN scores, Bool [S]."""

    def forward_encoder(self, net_input: dict[str, Tensor]) -> list[Any]:
        encoder_outs = super().forward_encoder(net_input)
        sources = net_input["src_tokens"]
        self.broken = torch.zeros(sources.size(0), dtype=torch.bool, device=sources.device)
        return encoder_outs

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: list[Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Optional[Tensor]]:
        scores, attention = super().forward_decoder(tokens, encoder_outs, *args, **kwargs)
        sentences = encoder_outs[0].sentences
        # The softmax spreads a single NaN over its whole row: look at one word of each.
        is_nan = scores[:, 0].isnan().view(sentences.numel(), -1).any(dim=1)
        assert self.broken is not None
        self.broken[sentences] = self.broken[sentences] | is_nan
        return scores, attention


def reject_broken(broken: Optional[Tensor], ids: Sequence[str]) -> None:
    """Raise FloatingPointError that names the sentences marked in ``broken``, Bool [S]."""
    if broken is None or not broken.any():
        return
    names = [name for name, is_broken in zip(ids, broken.tolist()) if is_broken]
    raise FloatingPointError(
        f"word scores are NaN for {len(names)} of {len(ids)} samples of a batch: "
        f"{', '.join(names[:10])}{', …' * (len(names) > 10)}. Check that the checkpoint's training "
        "did not diverge, and try without --fp16"
    )

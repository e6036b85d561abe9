"""Beam search after a decoder prompt: OFA's ``--prompt-type prev_output`` with open answers.

Stock beam search is forced through the prompt (``prefix_tokens``). Afterwards the prompt is removed
from hypotheses, scores and traces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.plugin.search.ensemble import WatchedEnsemble
from ofa_exit.runtime.trace import ExitTrace


class BoundedEnsemble(WatchedEnsemble):
    """An ensemble that ends each sentence at its own step.

    Prompts differ in length, but stock beam search has one length limit per batch.
    """

    limits: Optional[Tensor] = None
    """Largest number of steps of each sentence, prompt included, Long [S]; None sets no limit."""
    eos: int

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: list[Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Optional[Tensor]]:
        scores, attention = super().forward_decoder(tokens, encoder_outs, *args, **kwargs)
        if self.limits is None:
            return scores, attention
        # Scores are [S·beam, V] of the sentences still searched, tokens [S·beam, step + 1].
        sentences = encoder_outs[0].sentences
        is_last = self.limits[sentences] <= tokens.size(1) - 1
        is_last = is_last.repeat_interleave(scores.size(0) // sentences.numel()).unsqueeze(1)
        not_eos = torch.arange(scores.size(1), device=scores.device) != self.eos
        return scores.masked_fill(is_last & not_eos, -torch.inf), attention


@dataclass
class PromptedTrace(ExitTrace):
    """A trace of hypotheses from which the prompts, token ids without bos, have been removed."""

    prompts: list[list[int]] = field(default_factory=list)

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        pairs = zip(self.prompts, hypotheses)
        depths = super().depths([[[*prompt, *hyp] for hyp in hyps] for prompt, hyps in pairs])
        return [
            [layers[len(prompt) :] for layers in hyp_layers]
            for prompt, hyp_layers in zip(self.prompts, depths)
        ]


def prompt_tokens(sample: dict[str, Any], pad: int) -> Tensor:
    """Return the prompts of a batch without bos, Long [S, P], padded on the right."""
    lengths = sample["prompt_lengths"]  # bos included
    longest = int(lengths.max())
    prompts = sample["net_input"]["prev_output_tokens"][:, 1:longest]
    padding = prompts.new_tensor(range(1, longest)) >= lengths[:, None]
    return prompts.masked_fill(padding, pad)


def remove_prompts(hyps: list[list[dict[str, Tensor]]], lengths: Sequence[int]) -> None:
    """Remove prompts of ``lengths`` tokens from hypotheses and scores, in place."""
    for length, sentence_hyps in zip(lengths, hyps):
        for hyp in sentence_hyps:
            for name in ("tokens", "positional_scores"):
                hyp[name] = hyp[name][length:]
            hyp["score"] = hyp["positional_scores"].sum()

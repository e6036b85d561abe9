"""Beam search after a decoder prompt: ``--caption-prompt``, or ``--prompt-type prev_output``.

Stock beam search is forced through the prompt (``prefix_tokens``). Afterwards the prompt is removed
from hypotheses, scores and traces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.plugin.search.beam import BeamSearchTask
from ofa_exit.plugin.search.ensemble import WatchedEnsemble
from ofa_exit.plugin.search.options import reject_options
from ofa_exit.plugin.tasks.generation import Hyps
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


def remove_prompts(hyps: Hyps, lengths: Sequence[int], len_penalty: float) -> None:
    """Remove prompts of ``lengths`` tokens from hypotheses and scores, and sort again, in place.

    A score becomes that of the answer alone: the sum of its tokens' log-probabilities, divided by
    (number of tokens) ** len_penalty. Which hypotheses the search completes does not depend on the
    division, so they are those that a search of the answer alone would complete.
    """
    for length, sentence_hyps in zip(lengths, hyps):
        for hyp in sentence_hyps:
            for name in ("tokens", "positional_scores"):
                hyp[name] = hyp[name][length:]
            hyp["score"] = hyp["positional_scores"].sum() / len(hyp["tokens"]) ** len_penalty
        sentence_hyps.sort(key=lambda hyp: float(hyp["score"]), reverse=True)


class PromptedSearchTask(BeamSearchTask):
    """A task whose answers may begin after a decoder prompt, which beam search is forced through.

    A task defines ``has_prompts`` and ``prompt_room``.
    """

    ensemble = BoundedEnsemble

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.prompts: list[list[int]] = []
        """The prompts of the last batch, token ids without bos."""

    @property
    def has_prompts(self) -> bool:
        """Return whether words are searched after a prompt."""
        raise NotImplementedError

    @property
    def prompt_room(self) -> tuple[int, int]:
        """Return what prompts need in addition to --max-len-a and --max-len-b."""
        raise NotImplementedError

    def check_prompted_search(self, args: Any) -> None:
        """Raise UsageError for generation options that do not go with a prompt."""
        reject_options(args, {"prefix_size": "words are already forced by the decoder prompt"})

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        if self.has_prompts:
            self.check_prompted_search(args)
        generator = super().make_generator(models, args, **options)
        if self.has_prompts and hasattr(generator, "max_len_a"):  # not with --score-reference
            per_source, fixed = self.prompt_room
            generator.max_len_a += per_source
            generator.max_len_b += fixed
            generator.min_len += fixed
            generator.model.eos = self.dictionary.eos()
        return generator

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> Hyps:
        if not self.has_prompts or not hasattr(generator, "max_len_a"):
            return super().generate(generator, models, sample, **forced)
        prompts = prompt_tokens(sample, self.dictionary.pad())
        generator.model.limits = self.step_limits(generator, sample)
        forced["prefix_tokens"] = prompts if prompts.numel() else None
        hyps = super().generate(generator, models, sample, **forced)
        lengths = (sample["prompt_lengths"] - 1).tolist()
        remove_prompts(hyps, lengths, generator.len_penalty if generator.normalize_scores else 0)
        self.prompts = [prompt[:length] for prompt, length in zip(prompts.tolist(), lengths)]
        return hyps

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        limits = super().step_limits(generator, sample)
        if limits is None or not self.has_prompts:
            return limits
        # Exchange the room for any prompt for the length of this one, without bos.
        per_source, fixed = self.prompt_room
        room = per_source * sample["net_input"]["src_lengths"] + fixed
        return limits - room + sample["prompt_lengths"] - 1

    def traces(self, generator: Any, models: Sequence[Any]) -> list[Optional[ExitTrace]]:
        traces = super().traces(generator, models)
        if not self.has_prompts:
            return traces
        return [trace and PromptedTrace(**vars(trace), prompts=self.prompts) for trace in traces]

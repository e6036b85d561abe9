"""Answers out of a closed set: every candidate is scored, the best one wins."""

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.data.trie import AnswerTrie
from ofa_exit.plugin.generation import refuse_broken
from ofa_exit.policies.trace import ExitTrace


class PromptedTrace(ExitTrace):
    """A trace of sequences that begin with a prompt which is no part of the hypotheses.

    prompts: for each sentence the tokens fed before the answer, without the first (bos).
    """

    prompts: list[list[int]]

    @classmethod
    def of(cls, trace: ExitTrace, prompts: list[list[int]]) -> "PromptedTrace":
        prompted = cls(trace.image_layers, trace.text_layers, trace.steps)
        prompted.prompts = prompts
        return prompted

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        whole = [
            [[*prompt, *hypothesis] for hypothesis in of_sentence]
            for prompt, of_sentence in zip(self.prompts, hypotheses)
        ]
        return [
            [layers[len(prompt) :] for layers in of_sentence]
            for prompt, of_sentence in zip(self.prompts, super().depths(whole))
        ]


class AllCandidateGenerator(nn.Module):
    """A fairseq generator over the answers of a trie.

    The encoder runs once a sentence; the candidates are rows of one teacher-forced decoder pass,
    after the prompt of their sentence. Only the words that answers are made of are projected. At
    each position log-probabilities are normalised over the tokens that the trie allows there, and
    summed over answer and eos. Probabilities of several models are averaged token by token.
    """

    def __init__(self, models: Sequence[Any], trie: AnswerTrie, pad: int) -> None:
        super().__init__()
        self.models: Any = nn.ModuleList(models).eval()
        self.pad, self.eos = pad, trie.eos
        self.answers = [[*answer, trie.eos] for answer in trie.answers]
        self.words = sorted({token for answer in self.answers for token in answer})
        shape = (len(self.answers), max(map(len, self.answers)))
        place = {token: at for at, token in enumerate(self.words)}
        inputs = torch.full(shape, pad)  # what each answer feeds after the prompt's last token
        places = torch.zeros(shape, dtype=torch.long)
        counted = torch.zeros(shape, dtype=torch.bool)
        allowed = torch.ones(*shape, len(self.words), dtype=torch.bool)
        for row, answer in enumerate(self.answers):
            inputs[row, : len(answer) - 1] = torch.tensor(answer[:-1])
            counted[row, : len(answer)] = True
            for at, token in enumerate(answer):
                places[row, at] = place[token]
                allowed[row, at] = False
                allowed[row, at, [place[t] for t in trie.allowed_next(answer[:at])]] = True
        self._tables = (inputs, places, counted, allowed)
        self._traces: list[Optional[ExitTrace]] = []

    @property
    def steps(self) -> int:
        """Tokens of the longest answer, eos included."""
        return self._tables[0].size(1)

    def step_limits(self, prompt_lengths: Tensor) -> Tensor:
        """Positions that the decoder may reach, Long [S]: N of MuE Eq. 11."""
        return prompt_lengths - 1 + self.steps

    def traces(self) -> list[Optional[ExitTrace]]:
        """Layers executed for the last batch by each model; None for one without exits."""
        return self._traces

    @torch.no_grad()
    def generate(
        self,
        models: Sequence[Any],
        sample: dict[str, Any],
        prefix_tokens: Optional[Tensor] = None,
        constraints: Optional[Tensor] = None,
        bos_token: Optional[int] = None,
    ) -> list[list[dict[str, Tensor]]]:
        """All answers of every sentence, best first, in the form of fairseq's hypotheses.

        The prompts are the first ``prompt_lengths`` tokens of ``prev_output_tokens``; bos is the
        first of each. Raises FloatingPointError if a score is not a number.
        """
        if prefix_tokens is not None or constraints is not None:
            raise ValueError("the answers are a closed set: no prefix or constraint can be forced")
        net_input = dict(sample["net_input"])
        prev, lengths = net_input.pop("prev_output_tokens"), sample["prompt_lengths"]
        inputs, places, counted, allowed = (t.to(prev.device) for t in self._tables)
        rows = self._rows(prev, lengths, inputs)
        at = lengths[:, None] - 1 + torch.arange(self.steps, device=prev.device)

        scores = []
        for model in self.models:
            encoder_out = model.encoder.forward_torchscript(net_input)
            order = torch.arange(len(prev), device=prev.device).repeat_interleave(len(inputs))
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
            features, _ = model.decoder(
                rows.flatten(0, 1), encoder_out=encoder_out, features_only=True
            )
            features = features.unflatten(0, rows.shape[:2])
            features = features.gather(
                2, at[:, None, :, None].expand(-1, len(inputs), -1, features.size(3))
            )
            weight = model.decoder.output_projection.weight[self.words]
            logits = F.linear(features, weight).float()
            lprobs = logits.masked_fill(~allowed, -math.inf).log_softmax(dim=3)
            scores.append(lprobs.gather(3, places.expand(len(prev), -1, -1).unsqueeze(3)))
        each = torch.stack(scores).logsumexp(dim=0).squeeze(3) - math.log(len(scores))
        each = each.masked_fill(~counted, 0.0)
        refuse_broken(each.isnan().flatten(1).any(dim=1), sample["uniq_ids"])
        self._keep_traces(prev, lengths)
        return self._hypotheses(each)

    def _rows(self, prev: Tensor, lengths: Tensor, inputs: Tensor) -> Tensor:
        """Prompt and answer of every candidate, Long [S, answers, L], right-padded."""
        longest = int(lengths.max())
        columns = torch.arange(longest, device=prev.device)
        prompts = prev[:, :longest].masked_fill(columns >= lengths[:, None], self.pad)
        rows = F.pad(prompts, (0, self.steps - 1), value=self.pad)
        rows = rows[:, None].repeat(1, len(inputs), 1)
        if self.steps > 1:
            at = lengths[:, None, None] + torch.arange(self.steps - 1, device=prev.device)
            answers = inputs[:, :-1].expand(len(prev), -1, -1)
            rows.scatter_(2, at.expand_as(answers), answers)
        return rows

    def _keep_traces(self, prev: Tensor, lengths: Tensor) -> None:
        self._traces = [model.last_trace for model in self.models]
        prompts = None
        for number, trace in enumerate(self._traces):
            if trace is None:
                continue
            if prompts is None:
                prompts = [
                    tokens[1:length] for tokens, length in zip(prev.tolist(), lengths.tolist())
                ]
            self._traces[number] = PromptedTrace.of(trace, prompts)

    def _hypotheses(self, each: Tensor) -> list[list[dict[str, Tensor]]]:
        """each: log-probabilities [S, answers, steps], 0 behind an answer's eos."""
        totals = each.sum(dim=2)
        order = totals.sort(dim=1, descending=True, stable=True).indices.tolist()
        tokens = [torch.tensor(answer, device=each.device) for answer in self.answers]
        return [
            [
                {
                    "tokens": tokens[answer],
                    "score": totals[sentence, answer],
                    "attention": torch.empty(0),
                    "alignment": torch.empty(0),
                    "positional_scores": each[sentence, answer, : len(tokens[answer])],
                }
                for answer in best_first
            ]
            for sentence, best_first in enumerate(order)
        ]

"""Answers out of a closed set: every candidate is scored, the best one wins."""

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.data.trie import AnswerTrie
from ofa_exit.models.trees import TokenTree
from ofa_exit.plugin.generation import refuse_broken
from ofa_exit.policies.trace import ExitTrace


class AnswerTrace(ExitTrace):
    """A trace of answers out of a trie; a token that the trie forces ran no layers.

    places: for each sentence the position in its row that decides what follows a prefix.
    """

    places: list[dict[tuple[int, ...], int]]

    @classmethod
    def of(cls, trace: ExitTrace, places: list[dict[tuple[int, ...], int]]) -> "AnswerTrace":
        answers = cls(trace.image_layers, trace.text_layers, trace.steps)
        answers.places = places
        return answers

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        layers = self.steps[-1].layers.tolist()
        return [
            [
                [
                    used[at[tuple(answer[:t])]] if tuple(answer[:t]) in at else 0
                    for t in range(len(answer))
                ]
                for answer in of_sentence
            ]
            for used, at, of_sentence in zip(layers, self.places, hypotheses)
        ]


class AllCandidateGenerator(nn.Module):
    """A fairseq generator over the answers of a trie.

    Encoder and decoder run once a sentence. The decoder's row is the prompt and behind it, packed
    as a tree, the beginnings of answers after which the trie leaves a choice; what it forces, such
    as the end of an answer that no other continues, is not run. Where there is a choice, only the
    words that answers are made of are projected, and log-probabilities are normalised over the
    tokens that the trie allows; an answer's score is their sum. Probabilities of several models
    are averaged token by token.
    """

    def __init__(self, models: Sequence[Any], trie: AnswerTrie, pad: int) -> None:
        """Raises ValueError for a single answer, which needs no model."""
        super().__init__()
        self.models: Any = nn.ModuleList(models).eval()
        self.pad, self.eos = pad, trie.eos
        self.answers = [[*answer, trie.eos] for answer in trie.answers]
        self.branches = trie.branches()
        if not self.branches:
            raise ValueError(f"there is only one answer, {trie.answers[0]}: nothing to choose from")
        self.words = sorted({t for branch in self.branches for t in trie.allowed_next(branch)})
        # Tokens fed behind the prompt: every beginning of a prefix that leads to a choice.
        fed = sorted({b[:n] for b in self.branches for n in range(1, len(b) + 1)}, key=len)
        self._column = {prefix: at for at, prefix in enumerate(fed)}
        self.deepest = len(self.branches[-1])
        self._tables = self._make_tables(trie, fed)
        self._traces: list[Optional[ExitTrace]] = []

    def _make_tables(self, trie: AnswerTrie, fed: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """What does not depend on the sentence: of the fed tokens their numbers, depths and
        ancestors, [F], [F], [F, F]; of the branches which words they allow, [B, W]; of the answers
        which branch and word each of their tokens is, [A, T] both, branch B where it is forced."""
        word = {token: at for at, token in enumerate(self.words)}
        number = {branch: at for at, branch in enumerate(self.branches)}
        tokens = torch.tensor([prefix[-1] for prefix in fed], dtype=torch.long)
        depth = torch.tensor([len(prefix) for prefix in fed], dtype=torch.long)
        ancestors = torch.zeros(len(fed), len(fed), dtype=torch.bool)
        for prefix, row in self._column.items():
            ancestors[row, [self._column[prefix[:n]] for n in range(1, len(prefix) + 1)]] = True
        allowed = torch.zeros(len(self.branches), len(self.words), dtype=torch.bool)
        for branch, row in number.items():
            allowed[row, [word[token] for token in trie.allowed_next(branch)]] = True
        shape = (len(self.answers), max(map(len, self.answers)))
        deciding = torch.full(shape, len(self.branches))
        chosen = torch.zeros(shape, dtype=torch.long)
        for row, answer in enumerate(self.answers):
            for at, token in enumerate(answer):
                if tuple(answer[:at]) in number:
                    deciding[row, at] = number[tuple(answer[:at])]
                    chosen[row, at] = word[token]
        return tokens, depth, ancestors, allowed, deciding, chosen

    def step_limits(self, prompt_lengths: Tensor) -> Tensor:
        """Tokens that the decoder may be asked for after the first, prompt and the longest answer
        included, Long [S]: N of MuE Eq. 11."""
        return prompt_lengths - 1 + max(map(len, self.answers))

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
        tables = [table.to(prev.device) for table in self._tables]
        *_, allowed, deciding, chosen = tables
        longest = int(lengths.max())
        rows, tree = self._packed(prev[:, :longest], lengths, *tables[:4])
        at = self._columns(lengths, longest)

        scores = []
        for model in self.models:
            encoder_out = model.encoder.forward_torchscript(net_input)
            order = torch.arange(len(prev), device=prev.device)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
            features, _ = model.decoder(
                rows, encoder_out=encoder_out, features_only=True, tree=tree
            )
            features = features.gather(1, at.unsqueeze(2).expand(-1, -1, features.size(2)))
            weight = model.decoder.output_projection.weight[self.words]
            logits = F.linear(features, weight).float()
            scores.append(logits.masked_fill(~allowed, -math.inf).log_softmax(dim=2))
        lprobs = torch.stack(scores).logsumexp(dim=0) - math.log(len(scores))
        forced = lprobs.new_zeros(len(prev), 1, lprobs.size(2))
        each = torch.cat([lprobs, forced], dim=1)[:, deciding, chosen]
        refuse_broken(each.isnan().flatten(1).any(dim=1), sample["uniq_ids"])
        self._keep_traces(at)
        return self._hypotheses(each)

    def _packed(
        self,
        prompts: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        depth: Tensor,
        ancestors: Tensor,
        allowed: Tensor,
    ) -> tuple[Tensor, TokenTree]:
        """Every sentence's prompt with the answers' fed tokens, Long [S, L], and their tree."""
        sentences, longest = prompts.shape
        columns = torch.arange(longest, device=prompts.device)
        padding = columns >= lengths[:, None]
        rows = torch.cat(
            [prompts.masked_fill(padding, self.pad), tokens.expand(sentences, -1)], dim=1
        )
        total = rows.size(1)
        sees = torch.zeros(sentences, total, total, dtype=torch.bool, device=rows.device)
        sees[:, :longest, :longest] = columns[:, None] >= columns
        sees[:, longest:, :longest] = ~padding[:, None]
        sees[:, longest:, longest:] = ancestors
        places = torch.cat([columns.expand(sentences, -1), lengths[:, None] - 1 + depth], dim=1)
        asked = torch.zeros_like(rows, dtype=torch.bool)
        columns = self._columns(lengths, longest)
        asked.scatter_(1, columns, True)
        can_be = torch.ones(*rows.shape, allowed.size(1), dtype=torch.bool, device=rows.device)
        at = columns.unsqueeze(2).expand(-1, -1, allowed.size(1))
        can_be.scatter_(1, at, allowed.expand_as(at))
        words = torch.tensor(self.words, device=rows.device)
        return rows, TokenTree(places, sees, asked, longest + self.deepest, words, can_be)

    def _columns(self, lengths: Tensor, longest: int) -> Tensor:
        """Position of every branch in its sentence's row, Long [S, B]."""
        behind = [longest + self._column[branch] for branch in self.branches if branch]
        columns = torch.tensor(behind, dtype=torch.long, device=lengths.device)
        columns = columns.expand(len(lengths), -1)
        if self.branches[0]:
            return columns
        return torch.cat([lengths[:, None] - 1, columns], dim=1)  # behind the prompt's last token

    def _keep_traces(self, at: Tensor) -> None:
        self._traces = [model.last_trace for model in self.models]
        places = None
        for number, trace in enumerate(self._traces):
            if trace is None:
                continue
            if places is None:
                places = [dict(zip(self.branches, columns)) for columns in at.tolist()]
            self._traces[number] = AnswerTrace.of(trace, places)

    def _hypotheses(self, each: Tensor) -> list[list[dict[str, Tensor]]]:
        """each: log-probabilities [S, answers, tokens], 0 behind an answer's eos."""
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

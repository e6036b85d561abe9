"""Answers out of a closed set: every candidate is scored, the best one wins."""

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa_exit.data.answer_tree import AnswerTree
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.models.decoder import SCORES_AT_ONCE
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.search.generation import DEFAULTS, UNSUPPORTED, refuse_broken, refuse_options
from ofa_exit.runtime.token_tree import TokenTree
from ofa_exit.runtime.trace import ExitTrace

# Options of generation that do what they say without a search, those that fairseq calls deprecated
# among them. All others would promise what scoring a closed set does not do.
_KEPT = ("nbest", "sacrebleu", "no_seed_provided", "no_early_stop", "no_beamable_mm", *UNSUPPORTED)
_REFUSED = dict.fromkeys(
    (option for option in DEFAULTS if option not in _KEPT),
    "the answers are a closed set, each of which is scored in full; nothing is searched",
)


def refuse_search(args: Any, answers: int) -> None:
    """Raises UsageError for options of generation that ask for a search, or more than there are."""
    refuse_options(args, _REFUSED)
    nbest = getattr(args, "nbest", 1)
    if nbest > answers:
        raise UsageError(f"--nbest {nbest}: there are {answers} answers")


class AnswerTrace(ExitTrace):
    """A trace of answers out of a tree; a token that the tree does not ask for ran no layers.

    trees: of each sentence, or one for all. at: their decisions' places in the sentence's rows,
    one behind the other.
    """

    trees: Sequence[AnswerTree]
    at: Tensor

    @classmethod
    def of(cls, trace: ExitTrace, trees: Sequence[AnswerTree], at: Tensor) -> "AnswerTrace":
        answers = cls(trace.image_layers, trace.text_layers, trace.steps, trace.image_rows)
        answers.trees, answers.at = trees, at
        return answers

    def decided(self) -> list[dict[tuple[int, ...], int]]:
        """For each sentence the layers behind every prefix that was asked what follows."""
        step = self.steps[-1]
        layers = step.layers.flatten()[self.at].split([len(tree.decisions) for tree in self.trees])
        return [dict(zip(t.decisions, of.tolist())) for t, of in zip(self.trees, layers)]

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        return [
            [[used.get(tuple(answer[:t]), 0) for t in range(len(answer))] for answer in of_sentence]
            for used, of_sentence in zip(self.decided(), hypotheses)
        ]


class CandidateScorer(nn.Module):
    """Log-probabilities of the answers of trees, one tree a sentence or the same for all.

    Encoder and decoder run once a sentence, the image's part of the encoder once for sentences that
    share it in a batch (``collate``). A decoder row is the prompt and behind it a part of
    the tree (see ``AnswerTree``); the rows of a sentence are hypotheses of one group, so that its
    cross-attention keys and values exist once. Only positions where something is to be decided are
    projected to words. Probabilities of several models are averaged token by token.
    """

    def __init__(self, models: Sequence[Any], pad: int) -> None:
        super().__init__()
        self.models: Any = nn.ModuleList(models).eval()
        self.pad = pad
        self._traces: list[Optional[ExitTrace]] = []

    def traces(self) -> list[Optional[ExitTrace]]:
        """Layers executed for the last batch by each model; None for one without exits."""
        return self._traces

    @torch.no_grad()
    def score(self, sample: dict[str, Any], trees: Sequence[AnswerTree]) -> list[Tensor]:
        """For each sentence the log-probabilities of its answers' tokens, [A, T], 0 behind an
        answer's end and where nothing is decided.

        The prompts are the first ``prompt_lengths`` tokens of ``prev_output_tokens``; bos is the
        first of each. Raises FloatingPointError if a score is not a number.
        """
        net_input = dict(sample["net_input"])
        prev, lengths = net_input.pop("prev_output_tokens"), sample["prompt_lengths"]
        sentences = len(prev)
        every = list(trees) if len(trees) > 1 else list(trees) * sentences
        rows, tree, at = self._packed(prev[:, : int(lengths.max())], lengths, trees, every)
        edges = _Edges(every, prev.device)
        scores = []
        for model in self.models:
            encoder_out = model.encoder.forward_torchscript(net_input)
            order = torch.arange(len(rows), device=rows.device)
            order = order.div(len(rows) // sentences, rounding_mode="floor")
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
            features, _ = model.decoder(
                rows, encoder_out=encoder_out, features_only=True, tree=tree
            )
            scores.append(edges.scores(model, features.flatten(0, 1)[at]))
        lprobs = torch.stack(scores).logsumexp(dim=0) - math.log(len(scores))
        each = edges.of_answers(lprobs)
        broken = torch.stack([of_sentence.isnan().any() for of_sentence in each])
        refuse_broken(broken, sample["uniq_ids"])
        self._traces = [
            None if model.last_trace is None else AnswerTrace.of(model.last_trace, every, at)
            for model in self.models
        ]
        return each

    def _packed(
        self,
        prompts: Tensor,
        lengths: Tensor,
        trees: Sequence[AnswerTree],
        every: Sequence[AnswerTree],
    ) -> tuple[Tensor, TokenTree, Tensor]:
        """Every sentence's prompt with the trees' tokens behind, Long [S·G, L], how they form
        trees, and the places of all decisions in them, flattened, Long [M]."""
        (sentences, longest), device = prompts.shape, prompts.device
        groups = max(tree.rows for tree in trees)
        fed = max(tree.tokens.size(1) for tree in trees)
        tokens = torch.zeros(len(trees), groups, fed, dtype=torch.long)
        depth = torch.zeros_like(tokens)
        ancestors = torch.zeros(len(trees), groups, fed, fed, dtype=torch.bool)
        for number, tree in enumerate(trees):
            own = (number, slice(tree.rows), slice(tree.tokens.size(1)))
            tokens[own], depth[own] = tree.tokens, tree.depth
            ancestors[(*own, own[-1])] = tree.ancestors
        tokens = tokens.masked_fill(depth == 0, self.pad)
        ancestors |= torch.eye(fed, dtype=torch.bool)  # padding sees itself, as softmax wants it

        def each(values: Tensor) -> Tensor:
            return values.to(device).expand(sentences, *values.shape[1:]).flatten(0, 1)

        lengths = lengths.repeat_interleave(groups)
        columns = torch.arange(longest, device=device)
        padding = columns >= lengths[:, None]
        prompts = prompts.repeat_interleave(groups, dim=0).masked_fill(padding, self.pad)
        rows = torch.cat([prompts, each(tokens)], dim=1)
        total = rows.size(1)
        sees = torch.zeros(len(rows), total, total, dtype=torch.bool, device=device)
        sees[:, :longest, :longest] = columns[:, None] >= columns
        sees[:, longest:, :longest] = ~padding[:, None]
        sees[:, longest:, longest:] = each(ancestors)
        places = torch.cat(
            [columns.expand(len(rows), -1), lengths[:, None] - 1 + each(depth)], dim=1
        )
        at = self._places(lengths[::groups], every, longest, groups, total)
        asked = torch.zeros(rows.numel(), dtype=torch.bool, device=device)
        asked[at] = True
        deepest = max(tree.deepest for tree in trees)
        packed = TokenTree(places, sees, asked.view_as(rows), longest + deepest)
        words, allowed = every[0].words, every[0].allowed
        asking = any(model.decoder.used_exits() for model in self.models)
        if words is not None and allowed is not None and asking:
            packed.words = words.to(device)
            packed.allowed = torch.ones(rows.numel(), len(words), dtype=torch.bool, device=device)
            packed.allowed[at] = allowed.to(device).repeat(sentences, 1)
            packed.allowed = packed.allowed.view(*rows.shape, -1)
        return rows, packed, at

    @staticmethod
    def _places(
        lengths: Tensor, every: Sequence[AnswerTree], longest: int, groups: int, total: int
    ) -> Tensor:
        """Places of all decisions in the rows of ``total``, flattened."""
        sentence = torch.arange(len(every)).repeat_interleave(
            torch.tensor([len(tree.decisions) for tree in every])
        )
        row = torch.cat([tree.place_row for tree in every])
        column = torch.cat([tree.place_column for tree in every])
        in_tree = ((sentence * groups + row) * total + longest + column).to(lengths.device)
        sentence = sentence.to(lengths.device)
        behind_prompt = sentence * groups * total + lengths[sentence] - 1
        return torch.where((column < 0).to(lengths.device), behind_prompt, in_tree)


class _Edges:
    """The tokens that can be chosen at the decisions of a batch, numbered through."""

    def __init__(self, trees: Sequence[AnswerTree], device: torch.device) -> None:
        self.trees = trees
        self.words, self.allowed = trees[0].words, trees[0].allowed
        decisions = torch.tensor([0, *(len(tree.decisions) for tree in trees)]).cumsum(0)
        self.decision = torch.cat([t.edge_decision + n for t, n in zip(trees, decisions.tolist())])
        self.word = torch.cat([tree.edge_word for tree in trees]).to(device)
        self.device = device

    def scores(self, model: Any, features: Tensor) -> Tensor:
        """Log-probability of every edge, float32, for the features of the decisions [M, C]."""
        weight = model.decoder.output_projection.weight
        if self.words is not None and self.allowed is not None:
            weight = weight[self.words.to(self.device)]
            forbidden = ~self.allowed.to(self.device)
        at_once = max(1, SCORES_AT_ONCE // len(weight))
        found, done = [], 0
        for first in range(0, len(features), at_once):
            logits = F.linear(features[first : first + at_once], weight).float()
            if self.allowed is not None:
                each = torch.arange(first, first + len(logits), device=self.device)
                logits = logits.masked_fill(forbidden[each % len(forbidden)], -math.inf)
            last = int(torch.searchsorted(self.decision, first + len(logits)))
            row = (self.decision[done:last] - first).to(self.device)
            norm = logits.logsumexp(dim=1)
            found.append(logits[row, self.word[done:last]] - norm[row])
            done = last
        return torch.cat(found)

    def of_answers(self, scores: Tensor) -> list[Tensor]:
        """Scores of the edges, to those of each sentence's answers [A, T]."""
        sizes = [len(tree.edge_word) for tree in self.trees]
        nothing = scores.new_zeros(1)
        of_tree: dict[int, Tensor] = {}
        found = []
        for tree, own in zip(self.trees, scores.split(sizes)):
            if id(tree) not in of_tree:
                of_tree[id(tree)] = tree.edges.to(self.device)
            found.append(torch.cat([own, nothing])[of_tree[id(tree)]])
        return found


class AllCandidateGenerator(CandidateScorer):
    """A fairseq generator over the answers of a trie.

    Fed are the beginnings of answers after which the trie leaves a choice; what it forces, such as
    the end of an answer that no other continues, is not run. Where there is a choice, only the
    words that answers are made of are projected, and log-probabilities are normalised over the
    tokens that the trie allows; an answer's score is their sum.
    """

    def __init__(
        self,
        models: Sequence[Any],
        trie: AnswerTrie,
        pad: int,
        nbest: Optional[int] = None,
        **options: Any,
    ) -> None:
        """nbest: answers handed out, None = all. options: of ``AnswerTree``.

        Raises ValueError for a single answer, which needs no model.
        """
        super().__init__(models, pad)
        self.tree = AnswerTree(trie, **options)
        self.eos = trie.eos  # fairseq-generate asks for it
        self.nbest = nbest

    def step_limits(self, prompt_lengths: Tensor) -> Tensor:
        """Tokens that the decoder may be asked for after the first, prompt and the longest answer
        included, Long [S]: N of MuE Eq. 11."""
        return prompt_lengths - 1 + self.tree.longest

    def generate(
        self,
        models: Sequence[Any],
        sample: dict[str, Any],
        prefix_tokens: Optional[Tensor] = None,
        constraints: Optional[Tensor] = None,
        bos_token: Optional[int] = None,
    ) -> list[list[dict[str, Tensor]]]:
        """The answers of every sentence, best first, in the form of fairseq's hypotheses."""
        if prefix_tokens is not None or constraints is not None:
            raise ValueError("the answers are a closed set: no prefix or constraint can be forced")
        each = torch.stack(self.score(sample, [self.tree]))
        totals = each.sum(dim=2)
        best = totals.sort(dim=1, descending=True, stable=True).indices[:, : self.nbest].tolist()
        return [
            [
                {
                    "tokens": torch.tensor(self.tree.answers[answer], device=each.device),
                    "score": totals[sentence, answer],
                    "attention": torch.empty(0),
                    "alignment": torch.empty(0),
                    "positional_scores": each[sentence, answer, : len(self.tree.answers[answer])],
                }
                for answer in best_first
            ]
            for sentence, best_first in enumerate(best)
        ]

"""Closed sets of answers: score every candidate and return the best."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor, nn

from ofa_exit.data.answer_tree import AnswerTree
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.models.word_scores import MAX_SCORES_AT_ONCE
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.search.ensemble import reject_broken
from ofa_exit.plugin.search.options import DEFAULTS, UNSUPPORTED, reject_options
from ofa_exit.runtime.token_tree import TokenTree
from ofa_exit.runtime.trace import ExitTrace

# Generation options that work without a search, and those that fairseq calls deprecated. All
# others would have no effect.
_SUPPORTED = ("nbest", "sacrebleu", "no_seed_provided", "no_early_stop", "no_beamable_mm")
REJECTED = dict.fromkeys(
    (option for option in DEFAULTS if option not in (*_SUPPORTED, *UNSUPPORTED)),
    "the answers are a closed set; each is scored, nothing is searched",
)


def reject_search_options(args: Any, answers: int) -> None:
    """Raise UsageError for generation options of a search, and for --nbest above ``answers``."""
    reject_options(args, REJECTED)
    nbest = getattr(args, "nbest", 1)
    if nbest > answers:
        raise UsageError(f"--nbest {nbest}: there are {answers} answers")


@dataclass
class AnswerTrace(ExitTrace):
    """A trace of answers from a tree. Tokens at which the tree leaves no choice ran no layers.

    Args:
        trees: the tree of each sentence.
        positions: Long [M], the decisions of all sentences, in the flattened rows of the decoder.
    """

    trees: Sequence[AnswerTree] = ()
    positions: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def layers_by_prefix(self) -> list[dict[tuple[int, ...], int]]:
        """Return for each sentence the layers used after each prefix that leaves a choice."""
        layers = self.steps[-1].layers_used.flatten()[self.positions]
        by_tree = layers.split([len(tree.decisions) for tree in self.trees])
        return [dict(zip(tree.decisions, used.tolist())) for tree, used in zip(self.trees, by_tree)]

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        return [
            [[used.get(tuple(hyp[:t]), 0) for t in range(len(hyp))] for hyp in hyps]
            for used, hyps in zip(self.layers_by_prefix(), hypotheses)
        ]


class CandidateScorer(nn.Module):
    """Log-probabilities of the answers in trees, one tree per sentence or one for all.

    The encoder runs once per sentence, and its image part once for sentences of a batch that share
    an image (``collate``). A decoder row is the prompt followed by a part of the tree (see
    ``AnswerTree``). The rows of a sentence form one group, so that its cross-attention keys and
    values exist once. Only positions with a choice are projected to words. Probabilities of
    several models are averaged per token.
    """

    trace_class: ClassVar[type[AnswerTrace]] = AnswerTrace

    def __init__(self, models: Sequence[Any], pad: int) -> None:
        super().__init__()
        self.models: Any = nn.ModuleList(models).eval()
        self.pad = pad
        self._traces: list[Optional[ExitTrace]] = []

    def traces(self) -> list[Optional[ExitTrace]]:
        """Return each model's trace of the last batch; None for a model without exits."""
        return self._traces

    @torch.no_grad()
    def score(self, sample: dict[str, Any], trees: Sequence[AnswerTree]) -> list[Tensor]:
        """Return the log-probabilities of each sentence's answers, token by token.

        A prompt is the first ``prompt_lengths`` tokens of ``prev_output_tokens``, beginning with
        bos.

        Returns:
            For each sentence [A, T]: 0 after the end of an answer and where there is no choice.

        Raises:
            FloatingPointError: a score is NaN.
        """
        net_input = dict(sample["net_input"])
        prev, lengths = net_input.pop("prev_output_tokens"), sample["prompt_lengths"]
        sentences = len(prev)
        trees_of_sentences = list(trees) if len(trees) > 1 else list(trees) * sentences
        prompts = prev[:, : int(lengths.max())]
        rows, tree, positions = self._pack(prompts, lengths, trees, trees_of_sentences)
        edges = _Edges(trees_of_sentences, prev.device)
        # Row r belongs to sentence r // groups.
        order = torch.arange(len(rows), device=rows.device)
        order = order.div(len(rows) // sentences, rounding_mode="floor")
        scores = []
        for model in self.models:
            encoder_out = model.encoder.forward_torchscript(net_input)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
            decoder = model.decoder
            _, extra = decoder(rows, encoder_out=encoder_out, features_only=True, tree=tree)
            hidden, used = extra["states"], extra["layers_used"]  # [S·G, L, C], [S·G, L]
            used = None if used is None else used.flatten()[positions]
            groups = decoder.rows_by_head(used, decoder.active_heads(decoder.exit_policy))
            scores.append(edges.scores(decoder, hidden.flatten(0, 1)[positions], groups))
            if encoder_out.trace is not None:
                words = None if edges.words is None else len(edges.words)
                asked = tree.asked.view(sentences, -1).sum(dim=1)
                prices = decoder.word_flops(words), asked, decoder.word_prices(groups, words)
                encoder_out.trace.steps[-1].score_words(*prices)
        lprobs = torch.stack(scores).logsumexp(dim=0) - math.log(len(scores))
        answer_scores = edges.answer_scores(lprobs)
        broken = torch.stack([sentence_scores.isnan().any() for sentence_scores in answer_scores])
        reject_broken(broken, sample["uniq_ids"])
        self._traces = [
            trace and self.trace_class(**vars(trace), trees=trees_of_sentences, positions=positions)
            for trace in (model.last_trace for model in self.models)
        ]
        return answer_scores

    def _pack(
        self,
        prompts: Tensor,
        lengths: Tensor,
        trees: Sequence[AnswerTree],
        trees_of_sentences: Sequence[AnswerTree],
    ) -> tuple[Tensor, TokenTree, Tensor]:
        """Append the trees' tokens to every sentence's prompt.

        Args:
            prompts: Long [S, P], padded on the right; lengths: Long [S].

        Returns:
            The rows, Long [S·G, L] with L = P + tokens of the longest tree row; the tree that their
            tokens form; and the positions of all decisions in the flattened rows, Long [M].
        """
        (sentences, longest), device = prompts.shape, prompts.device
        groups = max(tree.rows for tree in trees)
        size = max(tree.tokens.size(1) for tree in trees)
        # Trees of different sizes, [trees, G, size], padded where depth is 0.
        tokens = torch.zeros(len(trees), groups, size, dtype=torch.long)
        depth = torch.zeros_like(tokens)
        ancestors = torch.zeros(len(trees), groups, size, size, dtype=torch.bool)
        for number, tree in enumerate(trees):
            own = (number, slice(tree.rows), slice(tree.tokens.size(1)))
            tokens[own], depth[own] = tree.tokens, tree.depth
            ancestors[(*own, own[-1])] = tree.ancestors
        tokens = tokens.masked_fill(depth == 0, self.pad)
        ancestors |= torch.eye(size, dtype=torch.bool)  # padding sees itself: softmax needs a key

        def per_row(values: Tensor) -> Tensor:
            return values.to(device).expand(sentences, *values.shape[1:]).flatten(0, 1)

        lengths = lengths.repeat_interleave(groups)
        columns = torch.arange(longest, device=device)
        padding = columns >= lengths[:, None]
        prompts = prompts.repeat_interleave(groups, dim=0).masked_fill(padding, self.pad)
        rows = torch.cat([prompts, per_row(tokens)], dim=1)
        total = rows.size(1)
        # Attention mask [S·G, L, L]: prompts are causal, trees see their prompt and ancestors.
        sees = torch.zeros(len(rows), total, total, dtype=torch.bool, device=device)
        sees[:, :longest, :longest] = columns[:, None] >= columns
        sees[:, longest:, :longest] = ~padding[:, None]
        sees[:, longest:, longest:] = per_row(ancestors)
        # A tree token's place in its answer, as if the answer stood right after the prompt.
        places = torch.cat(
            [columns.expand(len(rows), -1), lengths[:, None] - 1 + per_row(depth)], dim=1
        )
        positions = self._decision_positions(
            lengths[::groups], trees_of_sentences, longest, groups, total
        )
        asked = torch.zeros(rows.numel(), dtype=torch.bool, device=device)
        asked[positions] = True
        deepest = max(tree.deepest for tree in trees)
        packed = TokenTree(places, sees, asked.view_as(rows), longest + deepest)
        words, allowed = trees_of_sentences[0].words, trees_of_sentences[0].allowed
        if words is not None and allowed is not None:
            packed.words = words.to(device)

            @functools.cache  # megabytes per sentence, for gates that ask for word scores alone
            def allowed_at() -> Tensor:
                mask = torch.ones(rows.numel(), len(words), dtype=torch.bool, device=device)
                mask[positions] = allowed.to(device).repeat(sentences, 1)
                return mask.view(*rows.shape, -1)

            packed.allowed = allowed_at
        return rows, packed, positions

    @staticmethod
    def _decision_positions(
        lengths: Tensor, trees: Sequence[AnswerTree], longest: int, groups: int, total: int
    ) -> Tensor:
        """Return the positions of all decisions in the flattened rows of ``total`` tokens."""
        sentence = torch.arange(len(trees)).repeat_interleave(
            torch.tensor([len(tree.decisions) for tree in trees])
        )
        row = torch.cat([tree.place_row for tree in trees])
        column = torch.cat([tree.place_column for tree in trees])
        in_tree = ((sentence * groups + row) * total + longest + column).to(lengths.device)
        # The first token of an answer is decided at the last token of the prompt: column < 0.
        sentence = sentence.to(lengths.device)
        at_prompt = sentence * groups * total + lengths[sentence] - 1
        return torch.where((column < 0).to(lengths.device), at_prompt, in_tree)


class _Edges:
    """The tokens that can be chosen at the decisions of a batch, numbered consecutively."""

    def __init__(self, trees: Sequence[AnswerTree], device: torch.device) -> None:
        self.trees = trees
        self.words, self.allowed = trees[0].words, trees[0].allowed
        first = torch.tensor([0, *(len(tree.decisions) for tree in trees)]).cumsum(0).tolist()
        self.decision = torch.cat([tree.edge_decision + n for tree, n in zip(trees, first)])
        self.word = torch.cat([tree.edge_word for tree in trees]).to(device)
        self.device = device

    def scores(self, decoder: Any, hidden: Tensor, groups: Optional[dict[int, Tensor]]) -> Tensor:
        """Return the log-probability of every edge, float32 [E].

        Args:
            hidden: states at exit of the M decisions, [M, C].
            groups: rows of ``hidden`` by the head that scores them, see ``rows_by_head``.
        """
        words = None
        if self.words is not None and self.allowed is not None:
            words, forbidden = self.words.to(self.device), ~self.allowed.to(self.device)
        # In chunks, since logits of all decisions over the whole vocabulary may not fit.
        columns = decoder.output_projection.weight.size(0) if words is None else len(words)
        chunk = max(1, MAX_SCORES_AT_ONCE // columns) if groups is None else len(hidden)
        scores, done = [], 0
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = decoder.word_scores(hidden[part], groups, words).float()
            if self.allowed is not None:
                decision = torch.arange(start, start + len(logits), device=self.device)
                logits = logits.masked_fill(forbidden[decision % len(forbidden)], -math.inf)
            # Edges are sorted by decision: those of this chunk are done … end.
            end = int(torch.searchsorted(self.decision, start + len(logits)))
            row = (self.decision[done:end] - start).to(self.device)
            norm = logits.logsumexp(dim=1)
            scores.append(logits[row, self.word[done:end]] - norm[row])
            done = end
        return torch.cat(scores)

    def answer_scores(self, scores: Tensor) -> list[Tensor]:
        """Gather scores of the edges [E] as those of each sentence's answers, [A, T] each."""
        sizes = [len(tree.edge_word) for tree in self.trees]
        zero = scores.new_zeros(1)  # index E: no choice
        indices: dict[int, Tensor] = {}  # trees that sentences share go to the device once
        gathered = []
        for tree, tree_scores in zip(self.trees, scores.split(sizes)):
            if id(tree) not in indices:
                indices[id(tree)] = tree.edges.to(self.device)
            gathered.append(torch.cat([tree_scores, zero])[indices[id(tree)]])
        return gathered


class AllCandidateGenerator(CandidateScorer):
    """A fairseq generator over the answers of a trie.

    The decoder runs the prefixes of answers after which the trie leaves a choice. Tokens without a
    choice, such as the end of an answer that no other continues, are not run. Where there is a
    choice, only words that occur in answers are projected, and log-probabilities are normalised
    over the tokens that the trie allows. An answer's score is their sum.
    """

    def __init__(
        self, models: Sequence[Any], trie: AnswerTrie, pad: int, nbest: Optional[int] = None
    ) -> None:
        """Build the tree.

        Args:
            nbest: number of answers to return; None returns all.

        Raises:
            ValueError: there is only one answer, which needs no model.
        """
        super().__init__(models, pad)
        self.tree = AnswerTree(trie)
        self.eos = trie.eos  # read by fairseq-generate
        self.nbest = nbest

    def step_limits(self, prompt_lengths: Tensor) -> Tensor:
        """Return N of MuE Eq. 11, Long [S]: tokens after bos of the prompt and longest answer."""
        return prompt_lengths - 1 + self.tree.longest

    def generate(
        self,
        models: Sequence[Any],
        sample: dict[str, Any],
        prefix_tokens: Optional[Tensor] = None,
        constraints: Optional[Tensor] = None,
        bos_token: Optional[int] = None,
    ) -> list[list[dict[str, Tensor]]]:
        """Return the answers of every sentence, best first, in fairseq's form."""
        if prefix_tokens is not None or constraints is not None:
            raise ValueError(
                "the answers are a closed set: prefixes and constraints are unsupported"
            )
        scores = torch.stack(self.score(sample, [self.tree]))  # [S, answers, T]
        totals = scores.sum(dim=2)
        best = totals.sort(dim=1, descending=True, stable=True).indices[:, : self.nbest].tolist()
        return [
            [
                {
                    "tokens": torch.tensor(self.tree.answers[answer], device=scores.device),
                    "score": totals[sentence, answer],
                    "attention": torch.empty(0),
                    "alignment": torch.empty(0),
                    "positional_scores": scores[sentence, answer, : len(self.tree.answers[answer])],
                }
                for answer in best_first
            ]
            for sentence, best_first in enumerate(best)
        ]

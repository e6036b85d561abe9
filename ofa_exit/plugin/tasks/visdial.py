"""Task ``mue_visdial``: rank candidate answers to a dialogue's question by their likelihood."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from fairseq.tasks import register_task
from torch import Tensor

from ofa_exit.data.answer_tree import AnswerTree
from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.visdial import DialogExamples
from ofa_exit.evaluation.metrics.submission import ranks_of_order
from ofa_exit.evaluation.metrics.visdial import ndcg
from ofa_exit.plugin.search.candidates import AnswerTrace, CandidateScorer, reject_search_options
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.files import is_training
from ofa_exit.plugin.tasks.generation import Hyps
from ofa_exit.plugin.tasks.metrics import log_mean

SUMS = {
    "mrr": ("_mrr_sum", "_mrr_rounds"),
    "acc": ("_first_sum", "_first_rounds"),
    "ndcg": ("_ndcg_sum", "_ndcg_rounds"),
}


@dataclass
class VisDialConfig(OFATaskConfig):
    """Options of ``mue_visdial``."""

    length_normalized: bool = field(
        default=False,
        metadata={
            "help": "rank candidates by their mean log-probability per token, not by the sum"
        },
    )
    eval_mrr: bool = field(
        default=False,
        metadata={
            "help": "rank in validation and log MRR, and as acc the share of rounds whose true "
            "answer is ranked first (R@1), in percent"
        },
    )
    eval_ndcg: bool = field(
        default=False,
        metadata={
            "help": "rank in validation and log NDCG, in percent, of the rounds that have "
            "relevance annotations"
        },
    )


@dataclass
class RankingTrace(AnswerTrace):
    """A trace of rankings: the layers used for every scored token of all candidates, once each.

    The hypotheses are lists of candidate numbers, which no decoder layer has generated.
    """

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        return [[list(used.values())] for used in self.layers_by_prefix()]


class RankingGenerator(CandidateScorer):
    """A fairseq generator that returns the order of a sentence's candidates as one hypothesis.

    A candidate's score is the log-likelihood of its tokens and eos over the whole vocabulary, as
    for generative decoders in Das et al. 2017, Section 4, or with ``length_normalized`` the mean
    over them. Candidates with equal tokens share a score. Ties keep the order of the candidates.
    """

    trace_class = RankingTrace

    def __init__(
        self,
        models: Sequence[Any],
        pad: int,
        eos: int,
        numbers: Callable[[list[int]], Tensor],
        length_normalized: bool = False,
    ) -> None:
        """Set how candidates are ranked; ``numbers`` makes tokens that are printed as numbers."""
        super().__init__(models, pad)
        self.eos, self.numbers, self.length_normalized = eos, numbers, length_normalized

    def generate(
        self, models: Sequence[Any], sample: dict[str, Any], **forced: Optional[Any]
    ) -> Hyps:
        """Return the candidates' numbers, best first, with their scores as positional scores."""
        if forced.get("prefix_tokens") is not None or forced.get("constraints") is not None:
            raise ValueError("the candidates are given: give no prefix and no constraint")
        if "candidates" not in sample:
            raise ValueError("training data holds no candidates to rank: give another split")
        distinct = [list(dict.fromkeys(map(tuple, given))) for given in sample["candidates"]]
        trees = [
            AnswerTree(AnswerTrie(answers, self.eos), over_vocabulary=True) for answers in distinct
        ]
        answer_scores = self.score(sample, trees)
        hyps = []
        for candidates, answers, scores in zip(sample["candidates"], distinct, answer_scores):
            totals = scores.sum(dim=1)
            if self.length_normalized:
                totals = totals / totals.new_tensor([len(answer) + 1 for answer in answers])
            index = {answer: number for number, answer in enumerate(answers)}
            totals = totals[[index[tuple(candidate)] for candidate in candidates]]
            ranked = totals.sort(descending=True, stable=True)
            hyps.append(
                [
                    {
                        "tokens": self.numbers(ranked.indices.tolist()).to(totals.device),
                        "score": ranked.values[0],
                        "attention": totals.new_empty(0),
                        "alignment": totals.new_empty(0),
                        "positional_scores": ranked.values,
                    }
                ]
            )
        return hyps


@register_task("mue_visdial", dataclass=VisDialConfig)
class MuEVisDialTask(OFATask):
    """Visual dialogue: the source holds the history, and there are 100 candidates to rank.

    The output, scored by ``--scoring visdial``, is the list of candidate numbers, best first. OFA
    has no such task, and the papers give no thresholds. The defaults are those of entailment.
    """

    prefix = "visdial"
    row_examples = DialogExamples
    exit_defaults = "answer"
    eval_options = ("eval_mrr", "eval_ndcg")
    validation_metrics: ClassVar[dict[str, str]] = {
        "mrr": "eval_mrr",
        "acc": "eval_mrr",
        "ndcg": "eval_ndcg",
    }
    cfg: VisDialConfig

    def examples(self, path: Any, split: str, *arguments: Any, **options: Any) -> RowExamples:
        needs_truth = not is_training(split) and self.validates_generation()
        return super().examples(path, split, *arguments, needs_truth=needs_truth, **options)

    # ------------------------------------------------------------------ generation

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> RankingGenerator:
        reject_search_options(args, 1)
        pad, eos = self.dictionary.pad(), self.dictionary.eos()
        return RankingGenerator(models, pad, eos, self._numbers, self.cfg.length_normalized)

    def _numbers(self, order: list[int]) -> Tensor:
        return self.dictionary.shown_references(self.encoder.codec, [" ".join(map(str, order))])

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        """Return the steps of the longest candidate and its eos."""
        longest = [max(map(len, candidates)) + 1 for candidates in sample["candidates"]]
        return sample["prompt_lengths"] - 1 + sample["prompt_lengths"].new_tensor(longest)

    # ------------------------------------------------------------------ validation

    def validation_sums(self, sample: dict[str, Any], texts: list[str]) -> dict[str, float]:
        sums = dict.fromkeys([key for keys in SUMS.values() for key in keys], 0.0)
        for text, references in zip(texts, sample["references"]):
            ranks, relevance = ranks_of_order(text), list(map(float, references[1:]))
            if self.cfg.eval_mrr:
                rank = ranks[int(references[0])]
                sums["_mrr_sum"] += 1 / rank
                sums["_mrr_rounds"] += 1
                sums["_first_sum"] += rank == 1
                sums["_first_rounds"] += 1
            if self.cfg.eval_ndcg and relevance:
                sums["_ndcg_sum"] += ndcg(ranks, relevance)
                sums["_ndcg_rounds"] += 1
        return sums

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log ``mrr``, ``acc`` and ``ndcg`` of the whole split, in percent."""
        super().reduce_metrics(logging_outputs, criterion)
        for name, keys in SUMS.items():
            log_mean(name, logging_outputs, keys, scale=100)

"""Task ``mue_visdial``: candidate answers to a dialogue's question, ranked by their likelihood."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from fairseq.tasks import register_task
from torch import Tensor

from ofa_exit.data.answer_tree import AnswerTree
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.visdial import DialogExamples
from ofa_exit.evaluation.metrics.submission import ranks_of_order
from ofa_exit.evaluation.metrics.visdial import ndcg
from ofa_exit.plugin.search.candidates import AnswerTrace, CandidateScorer, refuse_search
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.files import is_training
from ofa_exit.plugin.tasks.validation import log_mean
from ofa_exit.runtime.trace import ExitTrace

SUMS = {"mrr": ("_mrr_sum", "_mrr_rounds"), "ndcg": ("_ndcg_sum", "_ndcg_rounds")}


@dataclass
class VisDialConfig(OFATaskConfig):
    """Options of ``mue_visdial``."""

    length_normalized: bool = field(
        default=False,
        metadata={
            "help": "rank candidates by their mean log-probability a token instead of its sum"
        },
    )
    eval_mrr: bool = field(
        default=False, metadata={"help": "rank in validation and report MRR, in percent"}
    )
    eval_ndcg: bool = field(
        default=False,
        metadata={
            "help": "rank in validation and report NDCG, in percent, of the rounds that are "
            "annotated for it"
        },
    )


class RankingTrace(ExitTrace):
    """A trace of rankings: the layers behind every token that was scored, each once, of all
    candidates, whichever numbers the ranking consists of."""

    scored: list[list[int]]

    @classmethod
    def of(cls, trace: ExitTrace, scored: list[list[int]]) -> "RankingTrace":
        ranking = cls(trace.image_layers, trace.text_layers, trace.steps, trace.image_rows)
        ranking.scored = scored
        return ranking

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        return [[layers] for layers in self.scored]


class RankingGenerator(CandidateScorer):
    """A fairseq generator whose one hypothesis is the order of a sentence's candidates.

    A candidate's score is the log-likelihood of its tokens and its eos over the whole vocabulary,
    as generative decoders are ranked (Das et al. 2017, Section 4), or with ``length_normalized``
    its mean over them. Candidates of equal tokens share their score; of equal scores the first
    comes first.
    """

    def __init__(
        self,
        models: Sequence[Any],
        pad: int,
        eos: int,
        numbers: Callable[[list[int]], Tensor],
        length_normalized: bool = False,
        **options: Any,
    ) -> None:
        """numbers: the tokens that print as a list of numbers. options: of ``AnswerTree``."""
        super().__init__(models, pad)
        self.eos, self.numbers, self.length_normalized = eos, numbers, length_normalized
        self.options = options

    def generate(
        self, models: Sequence[Any], sample: dict[str, Any], **forced: Optional[Any]
    ) -> list[list[dict[str, Tensor]]]:
        """The candidates' numbers, the best first; ``positional_scores`` are their scores."""
        if forced.get("prefix_tokens") is not None or forced.get("constraints") is not None:
            raise ValueError("the candidates are given: no prefix or constraint can be forced")
        if "candidates" not in sample:
            raise ValueError("training data hold the true answers alone: there is nothing to rank")
        orders = [list(dict.fromkeys(map(tuple, of))) for of in sample["candidates"]]
        trees = [
            AnswerTree(AnswerTrie(unique, self.eos), over_vocabulary=True, **self.options)
            for unique in orders
        ]
        each = self.score(sample, trees)
        hypotheses = []
        for candidates, unique, scores in zip(sample["candidates"], orders, each):
            totals = scores.sum(dim=1)
            if self.length_normalized:
                totals = totals / totals.new_tensor([len(answer) + 1 for answer in unique])
            place = {answer: at for at, answer in enumerate(unique)}
            totals = totals[[place[tuple(candidate)] for candidate in candidates]]
            ranked = totals.sort(descending=True, stable=True)
            hypotheses.append(
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
        return hypotheses

    def traces(self) -> list[Optional[ExitTrace]]:
        return [
            RankingTrace.of(trace, [list(of.values()) for of in trace.decided()])
            if isinstance(trace, AnswerTrace)
            else None
            for trace in super().traces()
        ]


@register_task("mue_visdial", dataclass=VisDialConfig)
class MuEVisDialTask(OFATask):
    """Visual dialogue: the history in the source, and 100 candidates to rank.

    What is generated, and scored by ``--scoring visdial``, are the candidates' numbers, the best
    first. OFA has no such task, and the papers give no thresholds: those of entailment.
    """

    prefix = "visdial"
    similarity_defaults: ClassVar[dict[str, Any]] = {
        "decoder_threshold": 0.95,
        "schedule": "static",
    }
    eval_options = ("eval_mrr", "eval_ndcg")
    cfg: VisDialConfig

    def examples(self, path: Any, split: str, load_image: ImageLoader) -> DialogExamples:
        return DialogExamples(
            path,
            self.encoder,
            load_image,
            train=is_training(split),
            selected_cols=self.cfg.selected_cols,
            max_src_length=self.cfg.max_src_length,
            max_tgt_length=self.cfg.max_tgt_length,
        )

    # ------------------------------------------------------------------ generation

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> RankingGenerator:
        refuse_search(args, 1)
        pad, eos = self.dictionary.pad(), self.dictionary.eos()
        return RankingGenerator(models, pad, eos, self._numbers, self.cfg.length_normalized)

    def _numbers(self, order: list[int]) -> Tensor:
        return self.dictionary.shown_references(self.encoder.codec, [" ".join(map(str, order))])

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        """Of the longest candidate and its eos."""
        longest = [max(map(len, candidates)) + 1 for candidates in sample["candidates"]]
        return sample["prompt_lengths"] - 1 + sample["prompt_lengths"].new_tensor(longest)

    def traces(self, generator: Any, models: Sequence[Any]) -> list[Optional[ExitTrace]]:
        return generator.traces()

    # ------------------------------------------------------------------ validation

    def validation_generator(self, model: Any) -> RankingGenerator:
        return self.make_generator([model], Namespace())

    def validation_sums(self, sample: dict[str, Any], hypotheses: list[str]) -> dict[str, float]:
        sums = dict.fromkeys([key for keys in SUMS.values() for key in keys], 0.0)
        rounds = zip(hypotheses, sample["references"], sample["uniq_ids"])
        for hypothesis, references, name in rounds:
            if not references:
                raise ValueError(f"round {name} has no true answer: it cannot be validated on")
            ranks, relevance = ranks_of_order(hypothesis), list(map(float, references[1:]))
            if self.cfg.eval_mrr:
                sums["_mrr_sum"] += 1 / ranks[int(references[0])]
                sums["_mrr_rounds"] += 1
            if self.cfg.eval_ndcg and relevance:
                sums["_ndcg_sum"] += ndcg(ranks, relevance)
                sums["_ndcg_rounds"] += 1
        return sums

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Adds ``mrr`` and ``ndcg``, in percent, of the whole split."""
        super().reduce_metrics(logging_outputs, criterion)
        for name, keys in SUMS.items():
            log_mean(name, logging_outputs, keys, scale=100)

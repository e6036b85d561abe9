"""Task ``mue_caption``: an image in, a caption out."""

import copy
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import numpy as np
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask, register_task
from torch import Tensor

from ofa_exit.data.caption import SEPARATOR, CaptionExamples
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.text import strip_punctuation
from ofa_exit.data.tsv import TsvError
from ofa_exit.evaluation.captions import CiderReference, bleu_from_statistics, bleu_statistics
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.files import is_training
from ofa_exit.plugin.generation import (
    UNSUPPORTED,
    WatchedEnsemble,
    generation_options,
    refuse_broken,
    refuse_options,
    step_limits,
)
from ofa_exit.plugin.target_words import TargetWords, target_words
from ofa_exit.plugin.task import OFATask, summed
from ofa_exit.plugin.task_config import OFATaskConfig

CIDER = ("_cider_sum", "_cider_sentences")
# Each would give words away that validation is to find.
_NOT_IN_VALIDATION = dict.fromkeys(
    ("score_reference", "prefix_size"), "validation generates from the picture alone"
)
BLEU = tuple(f"_bleu_{number}" for number in range(10))


@dataclass
class CaptionConfig(OFATaskConfig):
    """Options of ``mue_caption``."""

    eval_cider: bool = field(
        default=False, metadata={"help": "generate in validation and report CIDEr"}
    )
    eval_bleu: bool = field(
        default=False, metadata={"help": "generate in validation and report BLEU-4"}
    )
    eval_args: str = field(
        default="{}",
        metadata={
            "help": "generation options of validation as a JSON object, "
            '{"beam": 5, "max_len_b": 16} (default: beam 5, max_len_b = --max-tgt-length)'
        },
    )
    target_words: Optional[str] = field(
        default=None,
        metadata={
            "help": "score and search only a part of the vocabulary: 'task' leaves out image codes "
            "and position bins, a file lists the symbols of dict.txt to keep, one a line. Scores "
            "change a little, since probabilities are normalised over these words"
        },
    )


@register_task("mue_caption", dataclass=CaptionConfig)
class MuECaptionTask(OFATask):
    """Captioning in OFA's format; beam search is fairseq's own."""

    prefix = "caption"
    similarity_defaults: ClassVar[dict[str, Any]] = {
        "decoder_threshold": 0.99,
        "schedule": "decay",
        "beta": 0.95,
        "tau": 1.0,
    }
    eval_options = ("eval_cider", "eval_bleu")
    cfg: CaptionConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._cider: dict[str, tuple[Any, CiderReference]] = {}
        self.words: Optional[TargetWords] = None
        if self.cfg.target_words is not None:
            self.words = target_words(
                self.cfg.target_words, self.dictionary, self.cfg.code_dict_size, self.cfg.num_bins
            )
        self._all_references = False

    @classmethod
    def refuse_nonsense(cls, cfg: Any) -> None:
        super().refuse_nonsense(cfg)
        refuse_options(_eval_args(cfg), {**UNSUPPORTED, **_NOT_IN_VALIDATION})

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """The criterion says whether training rows may hold several captions (``mue_scst``)."""
        criterion = super().build_criterion(cfg, from_checkpoint)
        self._all_references = getattr(criterion, "trains_on_all_references", False)
        return criterion

    def examples(self, path: Any, split: str, load_image: ImageLoader) -> CaptionExamples:
        return CaptionExamples(
            path,
            self.encoder,
            load_image,
            train=is_training(split),
            all_references=self._all_references,
            selected_cols=self.cfg.selected_cols,
            max_tgt_length=self.cfg.max_tgt_length,
        )

    # ------------------------------------------------------------------ generation

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        if getattr(args, "score_reference", False) and self.exit_policy is not None:
            raise UsageError("--score-reference scores at full depth: leave --exit-policy out")
        refuse_options(args, {"diverse_beam_groups": "fairseq's search fails on it"})
        if getattr(args, "score_reference", False):
            if self.words is not None:
                raise UsageError("--score-reference scores any word: leave --target-words out")
            return FairseqTask.build_generator(self, models, args)
        task: Any = self
        if self.words is not None:  # fairseq takes the search's vocabulary from the task
            task = copy.copy(self)
            task.dictionary = self.words
        return FairseqTask.build_generator(
            task, WatchedEnsemble(models, self.words), args, **options
        )

    def scored_words(self) -> Optional[int]:
        return None if self.words is None else len(self.words)

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> list[list[dict[str, Tensor]]]:
        words, prefix = self.words, forced.get("prefix_tokens")
        if words is not None and prefix is not None:
            forced["prefix_tokens"] = words.reduced(prefix)
        try:
            self._keep_words(models, words)
            hypotheses = super().generate(generator, models, sample, **forced)
        except (AssertionError, RuntimeError):  # search or sampling found no word to go on with
            _refuse_broken(generator, sample)
            raise
        finally:
            self._keep_words(models, None)
        _refuse_broken(generator, sample)
        if words is not None:
            for hypothesis in (h for of_sentence in hypotheses for h in of_sentence):
                hypothesis["tokens"] = words.full(hypothesis["tokens"])
        return hypotheses

    @staticmethod
    def _keep_words(models: Sequence[Any], words: Optional[TargetWords]) -> None:
        for model in models:
            device = model.decoder.output_projection.weight.device
            model.decoder.keep_words(None if words is None else words.to(device).kept)

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        if not hasattr(generator, "max_len_a"):  # --score-reference
            return None
        return step_limits(generator, sample["net_input"]["src_lengths"])

    # ------------------------------------------------------------------ validation

    def validation_generator(self, model: Any) -> Any:
        return self.make_generator([model], _eval_args(self.cfg))

    def validation_sums(self, sample: dict[str, Any], hypotheses: list[str]) -> dict[str, float]:
        sums: dict[str, float] = {}
        pairs = list(zip(hypotheses, sample["references"]))
        if self.cfg.eval_cider:
            cider = self._cider_reference(sample["subset"])
            scores = [cider.score(hypothesis, references) for hypothesis, references in pairs]
            sums.update(zip(CIDER, (sum(scores), len(scores))))
        if self.cfg.eval_bleu:
            statistics = [
                bleu_statistics(hypothesis, references) for hypothesis, references in pairs
            ]
            sums.update(zip(BLEU, map(float, np.sum(statistics, axis=0))))
        return sums

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Adds ``cider`` and ``bleu`` of the whole split."""
        super().reduce_metrics(logging_outputs, criterion)
        total, sentences = summed(logging_outputs, CIDER)
        if sentences:
            metrics.log_scalar("_cider", np.array([total, sentences]))
            metrics.log_derived(
                "cider", lambda meters: round(float(np.divide(*meters["_cider"].sum)), 3)
            )
        statistics = np.array(list(summed(logging_outputs, BLEU)))
        if statistics.any():
            metrics.log_scalar("_bleu", statistics)
            metrics.log_derived(
                "bleu",
                lambda meters: round(bleu_from_statistics(meters["_bleu"].sum.tolist())[3], 3),
            )

    def _cider_reference(self, subset: str) -> CiderReference:
        """Word frequencies over all references of a split, read once."""
        dataset = self.datasets[subset]
        known = self._cider.get(subset)
        if known is None or known[0] is not dataset:
            known = dataset, CiderReference(_all_references(dataset.rows.examples))
            self._cider[subset] = known
        return known[1]


def _refuse_broken(generator: Any, sample: dict[str, Any]) -> None:
    if hasattr(generator, "model"):  # not with --score-reference
        refuse_broken(generator.model.broken, sample["uniq_ids"])


def _eval_args(cfg: CaptionConfig) -> Namespace:
    """Generation options of validation; raises ValueError on what are none."""
    return generation_options("--eval-args", cfg.eval_args, max_len_b=cfg.max_tgt_length)


def _all_references(examples: CaptionExamples) -> list[list[str]]:
    """The captions of every row that can be read, without its picture."""
    references = []
    for index in range(len(examples)):
        try:
            text = examples.file.row(index)["caption"]
        except TsvError:  # told, or skipped by flag, when the row itself is read
            continue
        captions = [" ".join(part.split()) for part in text.split(SEPARATOR)]
        if all(map(strip_punctuation, captions)):
            references.append(captions)
    return references

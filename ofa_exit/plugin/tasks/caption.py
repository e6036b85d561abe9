"""Task ``mue_caption``: an image in, a caption out."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import numpy as np
from fairseq.logging import metrics
from fairseq.tasks import register_task

from ofa_exit.data.caption import SEPARATOR, CaptionExamples
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.text import strip_punctuation
from ofa_exit.data.tsv import TsvError
from ofa_exit.evaluation.metrics.captions import (
    bleu_from_statistics,
    bleu_statistics,
)
from ofa_exit.evaluation.metrics.cider_d import CiderD
from ofa_exit.plugin.search.beam import BeamSearchTask
from ofa_exit.plugin.target_words import target_words
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.files import is_training
from ofa_exit.plugin.tasks.validation import log_mean, summed

CIDER = ("_cider_sum", "_cider_sentences")
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
class MuECaptionTask(BeamSearchTask):
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
        self._cider: dict[str, tuple[Any, CiderD]] = {}
        if self.cfg.target_words is not None:
            self.words = target_words(
                self.cfg.target_words, self.dictionary, self.cfg.code_dict_size, self.cfg.num_bins
            )
        self._all_references = False

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

    # ------------------------------------------------------------------ validation

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
        log_mean("cider", logging_outputs, CIDER)
        statistics = np.array(list(summed(logging_outputs, BLEU)))
        if statistics.any():
            metrics.log_scalar("_bleu", statistics)
            metrics.log_derived(
                "bleu",
                lambda meters: round(bleu_from_statistics(meters["_bleu"].sum.tolist())[3], 3),
            )

    def _cider_reference(self, subset: str) -> CiderD:
        """Word frequencies over all references of a split, read once."""
        dataset = self.datasets[subset]
        known = self._cider.get(subset)
        if known is None or known[0] is not dataset:
            known = dataset, CiderD.of_split(_all_references(dataset.rows.examples))
            self._cider[subset] = known
        return known[1]


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

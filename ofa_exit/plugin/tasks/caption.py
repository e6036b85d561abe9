"""Task ``mue_caption``: an image in, a caption out."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from fairseq.logging import metrics
from fairseq.tasks import register_task
from torch import Tensor

from ofa_exit.data.caption import CaptionExamples, encode_caption_prompt
from ofa_exit.data.formats import SEPARATOR
from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.text import strip_punctuation
from ofa_exit.data.tsv import TsvError
from ofa_exit.evaluation.metrics.captions import bleu_from_statistics, bleu_statistics
from ofa_exit.evaluation.metrics.cider_d import CiderD
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.search.options import reject_options
from ofa_exit.plugin.search.prompted import PromptedSearchTask
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.files import is_training
from ofa_exit.plugin.tasks.metrics import log_mean, summed
from ofa_exit.plugin.trained_options import trained_option

CIDER = ("_cider_sum", "_cider_sentences")
BLEU = tuple(f"_bleu_{number}" for number in range(10))


@dataclass
class CaptionConfig(OFATaskConfig):
    """Options of ``mue_caption``."""

    caption_prompt: Optional[str] = trained_option(
        None,
        'decoder prompt that captions continue, as "a photo of" (BLIP); it is no part of the loss '
        "and of generated captions",
    )
    eval_cider: bool = field(
        default=False, metadata={"help": "generate in validation and log CIDEr"}
    )
    eval_bleu: bool = field(
        default=False, metadata={"help": "generate in validation and log BLEU-4"}
    )
    scst: bool = field(
        default=False,
        metadata={"help": "OFA's flag of its CIDEr stage; here --criterion mue_scst is enough"},
    )
    eval_args: str = field(
        default="{}",
        metadata={
            "help": "generation options of validation as a JSON object, "
            '{"beam": 5, "max_len_b": 16} (default: beam 5, max_len_b = --max-tgt-length)'
        },
    )


@register_task("mue_caption", dataclass=CaptionConfig)
class MuECaptionTask(PromptedSearchTask):
    """Captioning in OFA's format, by fairseq's beam search."""

    prefix = "caption"
    row_examples = CaptionExamples
    exit_defaults = "caption"
    eval_options = ("eval_cider", "eval_bleu")
    validation_metrics: ClassVar[dict[str, str]] = {"cider": "eval_cider", "bleu": "eval_bleu"}
    cfg: CaptionConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._cider: dict[str, tuple[Any, CiderD]] = {}
        self._all_references = self._captions_optional = False
        self.caption_prompt: Optional[Tensor] = None
        if self.cfg.caption_prompt is not None:
            with usage_errors():
                self.caption_prompt = encode_caption_prompt(self.cfg.caption_prompt, self.encoder)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion.

        It may train on rows of several captions (``trains_on_all_references``), or of none
        (``trains_without_labels``).
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        self._captions_optional = getattr(criterion, "trains_without_labels", False)
        self._all_references = getattr(criterion, "trains_on_all_references", False)
        if self.cfg.scst and not self._all_references:
            raise UsageError("--scst needs --criterion mue_scst")
        if self._all_references and self.has_prompts:
            raise UsageError(
                "--caption-prompt: this criterion trains on sampled captions without a prompt. "
                "Leave the prompt out"
            )
        return criterion

    def examples(self, path: Any, split: str, *arguments: Any, **options: Any) -> RowExamples:
        needs_references = not is_training(split) and self.validates_generation()
        return super().examples(
            path,
            split,
            *arguments,
            all_references=self._all_references,
            captions_optional=self._captions_optional and not needs_references,
            caption_prompt=self.caption_prompt,
            **options,
        )

    # ------------------------------------------------------------------ generation

    def prompt(self, source: Tensor) -> Tensor:
        if self.caption_prompt is None:
            return source[:1]
        return torch.cat([source[:1], self.caption_prompt.to(source.device)])

    @property
    def has_prompts(self) -> bool:
        return self.caption_prompt is not None

    @property
    def prompt_room(self) -> tuple[int, int]:
        return 0, 0 if self.caption_prompt is None else len(self.caption_prompt)

    def check_prompted_search(self, args: Any) -> None:
        super().check_prompted_search(args)
        reason = "a caption after --caption-prompt has no source of its length"
        reject_options(args, {"match_source_len": reason})

    # ------------------------------------------------------------------ validation

    def validation_sums(self, sample: dict[str, Any], texts: list[str]) -> dict[str, float]:
        sums: dict[str, float] = {}
        pairs = list(zip(texts, sample["references"]))
        if self.cfg.eval_cider:
            cider = self._cider_reference(sample["subset"])
            scores = [cider.score(text, references) for text, references in pairs]
            sums.update(zip(CIDER, (sum(scores), len(scores))))
        if self.cfg.eval_bleu:
            statistics = [bleu_statistics(text, references) for text, references in pairs]
            sums.update(zip(BLEU, map(float, np.sum(statistics, axis=0))))
        return sums

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log ``cider`` and ``bleu`` of the whole split."""
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
        """Return CIDEr with the word frequencies of all references of a split, read once."""
        dataset = self.datasets[subset]
        cached = self._cider.get(subset)
        if cached is None or cached[0] is not dataset:
            cached = dataset, CiderD.of_split(_all_references(dataset.rows.examples))
            self._cider[subset] = cached
        return cached[1]


def _all_references(examples: CaptionExamples) -> list[list[str]]:
    """Return the captions of all readable rows, without reading images."""
    references = []
    for index in range(len(examples)):
        try:
            text = examples.file.row(index)["caption"]
        except TsvError:  # raised, or skipped by flag, when the batch is read
            continue
        captions = [" ".join(part.split()) for part in text.split(SEPARATOR)]
        if all(map(strip_punctuation, captions)):
            references.append(captions)
    return references

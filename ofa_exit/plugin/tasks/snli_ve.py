"""Task ``mue_snli_ve``: does an image (and a premise) entail a hypothesis?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.tasks import register_task
from torch import Tensor

from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.snli_ve import (
    OFFICIAL_LABELS,
    EntailmentExamples,
    answer_tokens,
    parse_labels,
)
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.evaluation.metrics.accuracy import is_correct
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.search.candidates import AllCandidateGenerator, reject_search_options
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.metrics import log_mean
from ofa_exit.plugin.trained_options import trained_option

ACCURACY = ("_acc_correct", "_acc_sentences")


@dataclass
class SnliVeConfig(OFATaskConfig):
    """Options of ``mue_snli_ve``."""

    prompt_type: Optional[str] = trained_option(
        "none",
        "decoder prompt before the answer: only the start symbol (none), the source (src), or the "
        "source without its end symbol (prev_output)",
    )
    add_caption: Optional[bool] = trained_option(
        False, "add the premise, a caption, to the question"
    )
    labels: Optional[str] = trained_option(
        None,
        "labels of the file, LABEL or LABEL=ANSWER separated by commas, as in true,false; the "
        f"model answers in these words (none: {OFFICIAL_LABELS})",
    )
    eval_acc: bool = field(
        default=False, metadata={"help": "answer in validation and log the accuracy"}
    )


@register_task("mue_snli_ve", dataclass=SnliVeConfig)
class MuESnliVeTask(OFATask):
    """Entailment in OFA's format: score the answers (yes, maybe, no) and take the best."""

    prefix = "snli_ve"
    row_examples = EntailmentExamples
    exit_defaults = "answer"
    eval_options = ("eval_acc",)
    validation_metrics = dict.fromkeys(("acc", "snli_score"), "eval_acc")
    cfg: SnliVeConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        with usage_errors():
            answers = answer_tokens(self.encoder, self.cfg.labels).values()
            self.trie = AnswerTrie(answers, self.dictionary.eos())

    @classmethod
    def check_options(cls, cfg: Any) -> None:
        super().check_options(cfg)
        parse_labels(cfg.labels)

    def examples(self, path: Any, split: str, *arguments: Any, **options: Any) -> RowExamples:
        return super().examples(
            path,
            split,
            *arguments,
            add_caption=self.cfg.add_caption,
            prompt_type=self.cfg.prompt_type,
            labels=self.cfg.labels,
            trie=self.trie,
            **options,
        )

    # ------------------------------------------------------------------ generation

    def make_generator(
        self, models: Sequence[Any], args: Any, **options: Any
    ) -> AllCandidateGenerator:
        reject_search_options(args, len(self.trie.answers))
        return AllCandidateGenerator(models, self.trie, self.dictionary.pad())

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        return generator.step_limits(sample["prompt_lengths"])

    # ------------------------------------------------------------------ validation

    def validation_sums(self, sample: dict[str, Any], texts: list[str]) -> dict[str, float]:
        correct = [is_correct(*pair) for pair in zip(texts, sample["references"])]
        return dict(zip(ACCURACY, (float(sum(correct)), float(len(correct)))))

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log ``acc`` of the whole split in percent, also as OFA's ``snli_score``, 0 to 1."""
        super().reduce_metrics(logging_outputs, criterion)
        log_mean("acc", logging_outputs, ACCURACY, scale=100)
        log_mean("snli_score", logging_outputs, ACCURACY)

"""Task ``mue_vqa``: a question about an image, with open answers or a closed set of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.tasks import register_task
from torch import Tensor

from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.vqa import QuestionExamples, read_answers
from ofa_exit.evaluation.metrics.vqa import ten_answers
from ofa_exit.evaluation.metrics.vqa_answers import answer_accuracy, vizwiz_answer_accuracy
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.search.beam import eval_args
from ofa_exit.plugin.search.candidates import AllCandidateGenerator, reject_search_options
from ofa_exit.plugin.search.prompted import PromptedSearchTask
from ofa_exit.plugin.tasks.base import Hyps, OFATask
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.metrics import log_mean
from ofa_exit.plugin.trained_options import trained_option

ACCURACY = ("_vqa_sum", "_vqa_questions")
# Equal to the scorers of the same names. VQA and VizWiz have ten annotators, GQA one answer.
VQA_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "vqa_accuracy": answer_accuracy,
    "vizwiz_accuracy": vizwiz_answer_accuracy,
    "gqa_accuracy": lambda prediction, answers: float(prediction.strip() == answers[0]),
}


@dataclass
class VqaConfig(OFATaskConfig):
    """Options of ``mue_vqa``."""

    answers: Optional[str] = field(
        default=None,
        metadata={
            "help": "text file of the candidate answers, one per line (answers.txt of ofa-exit "
            "prepare): training is restricted to them, and generation scores each of them "
            "(default: any words, found by beam search)"
        },
    )
    prompt_type: Optional[str] = trained_option(
        "none",
        "decoder prompt before the answer: only the start symbol (none), the source (src, with "
        "--answers), or the source without its end symbol (prev_output)",
    )
    eval_acc: bool = field(
        default=False, metadata={"help": "answer in validation and log the accuracy as vqa_acc"}
    )
    vqa_metric: str = field(
        default="vqa_accuracy",
        metadata={"help": f"accuracy that --eval-acc logs: {', '.join(VQA_METRICS)}"},
    )
    eval_args: str = field(
        default="{}",
        metadata={
            "help": "generation options of validation without --answers as a JSON object, "
            '{"beam": 5, "unnormalized": true} (default: beam 5, max_len_b = --max-tgt-length)'
        },
    )


@register_task("mue_vqa", dataclass=VqaConfig)
class MuEVqaTask(PromptedSearchTask):
    """Question answering in OFA's format (its vqa_gen), open or over a closed set of answers.

    The papers give no thresholds for it. The defaults are those of entailment, whose answers are
    as short.
    """

    prefix = "vqa"
    row_examples = QuestionExamples
    exit_defaults = "answer"
    eval_options = ("eval_acc",)
    cfg: VqaConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trie: Optional[AnswerTrie] = None
        if self.cfg.answers:
            with usage_errors():
                tokens = read_answers(self.cfg.answers, self.encoder).values()
            self.trie = AnswerTrie(tokens, self.dictionary.eos())

    @classmethod
    def check_options(cls, cfg: Any) -> None:
        super().check_options(cfg)
        if cfg.vqa_metric not in VQA_METRICS:
            raise ValueError(
                f"--vqa-metric {cfg.vqa_metric!r}: choose from {', '.join(VQA_METRICS)}"
            )

    def examples(self, *arguments: Any, **options: Any) -> RowExamples:
        options.update(prompt_type=self.cfg.prompt_type, trie=self.trie)
        return super().examples(*arguments, **options)

    # ------------------------------------------------------------------ generation

    @property
    def has_prompts(self) -> bool:
        return self.trie is None and self.cfg.prompt_type != "none"

    @property
    def prompt_room(self) -> tuple[int, int]:
        return 1, 0  # a prompt is at most as long as the source

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        if self.trie is not None:
            reject_search_options(args, len(self.trie.answers))
            nbest = getattr(args, "nbest", 1)
            return AllCandidateGenerator(models, self.trie, self.dictionary.pad(), nbest)
        return super().make_generator(models, args, **options)

    def check_prompted_search(self, args: Any) -> None:
        if self.cfg.prompt_type == "src":
            raise UsageError(
                "--prompt-type src needs --answers: the prompt ends with eos, which would end beam "
                "search. Use prev_output or none"
            )
        if not getattr(args, "unnormalized", False):
            raise UsageError(
                "--prompt-type prev_output without --answers needs --unnormalized, as in OFA: beam "
                "search would divide scores by the length of prompt and answer together"
            )
        super().check_prompted_search(args)

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> Hyps:
        if self.trie is not None:
            return OFATask.generate(self, generator, models, sample, **forced)
        return super().generate(generator, models, sample, **forced)

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        if self.trie is not None:
            return generator.step_limits(sample["prompt_lengths"])
        return super().step_limits(generator, sample)

    # ------------------------------------------------------------------ validation

    def validation_generator(self, model: Any) -> Any:
        if self.trie is not None:
            return OFATask.validation_generator(self, model)
        args = eval_args(self.cfg)
        if self.cfg.prompt_type != "none":
            args.unnormalized = True
        return self.make_generator([model], args)

    def validation_sums(self, sample: dict[str, Any], texts: list[str]) -> dict[str, float]:
        accuracy = VQA_METRICS[self.cfg.vqa_metric]
        total = 0.0
        for text, answers, name in zip(texts, sample["references"], sample["uniq_ids"]):
            if self.cfg.vqa_metric == "gqa_accuracy":
                if len(answers) != 1:
                    raise ValueError(f"question {name} has {len(answers)} answers, in GQA one")
            else:
                ten_answers(answers, f"question {name}")
            total += accuracy(text, answers)
        return dict(zip(ACCURACY, (total, float(len(texts)))))

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log ``vqa_acc`` of the whole split, in percent."""
        super().reduce_metrics(logging_outputs, criterion)
        log_mean("vqa_acc", logging_outputs, ACCURACY, scale=100)

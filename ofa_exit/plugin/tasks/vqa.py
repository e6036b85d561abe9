"""Task ``mue_vqa``: a question about an image, with open answers or a closed set of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.tasks import register_task
from torch import Tensor

from ofa_exit.data.answers import reference_answers
from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.vqa import (
    FIRST_ROWS,
    MAX_OBJECTS,
    QuestionExamples,
    read_answers,
)
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.scorers.measures import (
    AUTO,
    MEASURES,
    VQA_METRICS,
    Measure,
    check_metric,
    measure_of_rows,
)
from ofa_exit.plugin.search.beam import eval_args
from ofa_exit.plugin.search.candidate_search import CandidateEnsemble, check_candidate_search
from ofa_exit.plugin.search.candidates import AllCandidateGenerator, reject_search_options
from ofa_exit.plugin.search.prompted import PromptedSearchTask
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.files import is_training
from ofa_exit.plugin.tasks.generation import Hyps
from ofa_exit.plugin.tasks.metrics import log_mean
from ofa_exit.plugin.trained_options import trained_option

logger = logging.getLogger(__name__)

ACCURACY = ("_vqa_sum", "_vqa_questions")
SCORE = ("_vqa_score_sum", "_vqa_cnt")  # OFA's names
INFERENCE_TYPES = ("allcand", "beamsearch")


@dataclass
class VqaConfig(OFATaskConfig):
    """Options of ``mue_vqa``."""

    answers: Optional[str] = field(
        default=None,
        metadata={
            "help": "file of the candidate answers, one per line (answers.txt of ofa-exit prepare) "
            "or OFA's trainval_ans2label.pkl: training is restricted to them, and generation "
            "scores each of them (default: any words, found by beam search)"
        },
    )
    ans2label_file: Optional[str] = field(
        default=None, metadata={"help": "OFA's name for --answers"}
    )
    beam_search_vqa_eval: bool = field(
        default=False,
        metadata={
            "help": "with --answers: find the answer by beam search among the candidates, as OFA's "
            "evaluate_vqa_beam.sh, instead of scoring each of them; faster, but not always the best"
        },
    )
    val_inference_type: str = field(
        default="allcand",
        metadata={
            "help": "validation with --answers: score each candidate (allcand), or search among "
            "them (beamsearch)"
        },
    )
    add_object: Optional[bool] = trained_option(
        False, "add the predicted objects, column 4 of OFA's files, to the question"
    )
    max_object_length: Optional[int] = trained_option(
        MAX_OBJECTS, "largest number of predicted objects to add"
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
        default=AUTO,
        metadata={
            "help": f"accuracy that --eval-acc logs: {', '.join(VQA_METRICS)}. auto chooses "
            "vqa_accuracy for the answers of ten annotators, exact_match for one answer per "
            "question, and ofa_score for answers with a score"
        },
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
    ensemble = CandidateEnsemble
    validation_metrics = dict.fromkeys(("vqa_acc", "acc", "vqa_score"), "eval_acc")
    cfg: VqaConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trie: Optional[AnswerTrie] = None
        self.measures: dict[str, Measure] = {}
        """What --eval-acc measures on each split."""
        answers = self.cfg.answers or self.cfg.ans2label_file
        with usage_errors():
            if answers:
                tokens = read_answers(answers, self.encoder).values()
                self.trie = AnswerTrie(tokens, self.dictionary.eos())

    @classmethod
    def check_options(cls, cfg: Any) -> None:
        super().check_options(cfg)
        check_metric(cfg.vqa_metric)
        if cfg.val_inference_type not in INFERENCE_TYPES:
            raise ValueError(
                f"--val-inference-type {cfg.val_inference_type!r}: choose from "
                f"{', '.join(INFERENCE_TYPES)}"
            )
        if cfg.answers and cfg.ans2label_file and cfg.answers != cfg.ans2label_file:
            raise ValueError(
                f"--answers {cfg.answers} and --ans2label-file {cfg.ans2label_file} name the same "
                "list of candidates: give one of them"
            )
        if cfg.beam_search_vqa_eval and not (cfg.answers or cfg.ans2label_file):
            logger.warning(
                "--beam-search-vqa-eval without --answers: any words are searched, as by OFA's "
                "evaluate_vqa_unconstrained.sh"
            )
        if cfg.max_object_length < 1:
            raise ValueError(f"--max-object-length {cfg.max_object_length}: give at least 1")

    def examples(self, *arguments: Any, **options: Any) -> RowExamples:
        options.update(prompt_type=self.cfg.prompt_type, trie=self.trie)
        options.update(add_object=self.cfg.add_object, max_object_length=self.cfg.max_object_length)
        return super().examples(*arguments, **options)

    @usage_errors()
    def load_dataset(self, split: str, *arguments: Any, **options: Any) -> None:
        """Open the file of ``split``, and see in its first rows what it can be validated by."""
        super().load_dataset(split, *arguments, **options)
        examples: Any = self.datasets[split].rows.examples
        if self.cfg.eval_acc and not is_training(split):
            measure = self._choose_measure(examples)
            self.measures[split] = measure
            examples.check_answers = measure.check
            logger.info("%s: vqa_acc is %s", split, measure.title)
        if self.cfg.add_object and not examples.has_objects(FIRST_ROWS):
            logger.warning(
                "%s: --add-object, but none of the first %d rows has predicted objects (column "
                "%d): questions end in ' object:' alone",
                *(examples.file.path, min(FIRST_ROWS, len(examples))),
                examples.file.column_of("objects"),
            )

    def _choose_measure(self, examples: QuestionExamples) -> Measure:
        """Return the measure of --vqa-metric. Raises ValueError: the first row does not fit."""
        measure = measure_of_rows(examples, self.cfg.vqa_metric)
        index, answers = next(examples.first_answers(FIRST_ROWS))
        try:
            measure.check(answers)
        except ValueError as error:
            remedy = "Choose another --vqa-metric" if self.cfg.vqa_metric != AUTO else "Correct it"
            raise examples.file.error(index, "answers", str(error), remedy) from None
        return measure

    # ------------------------------------------------------------------ generation

    @property
    def scores_candidates(self) -> bool:
        """Return whether every candidate is scored; otherwise a beam search finds the answer."""
        searches = self.cfg.beam_search_vqa_eval or self.cfg.val_inference_type == "beamsearch"
        return self.trie is not None and not searches

    @property
    def has_prompts(self) -> bool:
        return not self.scores_candidates and self.cfg.prompt_type != "none"

    @property
    def prompt_room(self) -> tuple[int, int]:
        return 1, 0  # a prompt is at most as long as the source

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        if self.trie is None:
            return super().make_generator(models, args, **options)
        candidates = len(self.trie.answers)
        if self.scores_candidates:
            reject_search_options(args, candidates)
            nbest = getattr(args, "nbest", 1)
            return AllCandidateGenerator(models, self.trie, self.dictionary.pad(), nbest)
        check_candidate_search(models, self.trie, args)
        generator = super().make_generator(models, args, **options)
        generator.beam_size = min(generator.beam_size, candidates)  # a wider one has no words
        generator.model.trie = self.trie
        return generator

    def check_prompted_search(self, args: Any) -> None:
        if self.cfg.prompt_type == "src":
            raise UsageError(
                "--prompt-type src needs --answers without beam search: the prompt ends with eos, "
                "which would end the search. Use prev_output or none"
            )
        if not getattr(args, "unnormalized", False):
            raise UsageError(
                "--prompt-type prev_output without --answers, or with a beam search among them, "
                "needs --unnormalized, as in OFA: beam search would divide scores by the length of "
                "prompt and answer together"
            )
        super().check_prompted_search(args)

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> Hyps:
        if self.scores_candidates:
            return OFATask.generate(self, generator, models, sample, **forced)
        if self.trie is not None:
            generator.model.prompt_lengths = sample["prompt_lengths"]
        return super().generate(generator, models, sample, **forced)

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        if self.scores_candidates:
            return generator.step_limits(sample["prompt_lengths"])
        limits = super().step_limits(generator, sample)
        if self.trie is None or limits is None:
            return limits
        # As many steps as the prompt without bos, the longest candidate and its eos.
        return limits.minimum(sample["prompt_lengths"] + max(map(len, self.trie.answers)))

    # ------------------------------------------------------------------ validation

    def validation_generator(self, model: Any) -> Any:
        if self.scores_candidates:
            return OFATask.validation_generator(self, model)
        args = eval_args(self.cfg)
        if self.cfg.prompt_type != "none":
            args.unnormalized = True
        return self.make_generator([model], args)

    def validation_sums(self, sample: dict[str, Any], texts: list[str]) -> dict[str, float]:
        measure = self.measures[sample["subset"]]
        # OFA's files hold the score of each answer, which it takes from the ten annotators.
        score = measure if measure.count else MEASURES["ofa_score"]
        rows = list(map(reference_answers, sample["references"]))
        sums: dict[str, float] = {}
        for names, used in ((ACCURACY, measure), (SCORE, score)):
            total = sum(used.value(text, answers) for text, answers in zip(texts, rows))
            sums.update(zip(names, (float(total), float(len(texts)))))
        return sums

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log ``vqa_acc`` and ``acc`` of the split in percent, and OFA's ``vqa_score``, 0 to 1."""
        super().reduce_metrics(logging_outputs, criterion)
        log_mean("vqa_acc", logging_outputs, ACCURACY, scale=100)
        log_mean("acc", logging_outputs, ACCURACY, scale=100)
        log_mean("vqa_score", logging_outputs, SCORE)

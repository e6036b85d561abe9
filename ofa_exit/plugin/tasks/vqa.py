"""Task ``mue_vqa``: a question about an image, answered in words or out of a closed set."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import torch
from fairseq.tasks import register_task
from torch import Tensor

from ofa_exit.data.example import PROMPT_TYPES
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.vqa import QuestionExamples, read_answers
from ofa_exit.evaluation.metrics.vqa import ten_answers
from ofa_exit.evaluation.metrics.vqa_answers import answer_accuracy, vizwiz_answer_accuracy
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.search.beam import BeamSearchTask, eval_args
from ofa_exit.plugin.search.candidates import AllCandidateGenerator, refuse_search
from ofa_exit.plugin.search.generation import WatchedEnsemble
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.files import is_training
from ofa_exit.plugin.tasks.validation import log_mean
from ofa_exit.runtime.trace import ExitTrace

ACCURACY = ("_vqa_sum", "_vqa_questions")
# As the scorers of these names, VQA's and VizWiz's over ten annotators, GQA's over one answer.
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
            "help": "text file of the candidate answers, one a line (answers.txt of "
            "ofa_exit.prepare): training is restricted to them, and every one of them is "
            "scored to answer (default: any words, found by beam search)"
        },
    )
    prompt_type: str = field(
        default="none",
        metadata={
            "help": "what the decoder is fed before the answer: nothing but its start (none), the "
            "source (src, with --answers), or the source without its end (prev_output)"
        },
    )
    eval_acc: bool = field(
        default=False,
        metadata={"help": "answer in validation and report the accuracy as vqa_acc"},
    )
    vqa_metric: str = field(
        default="vqa_accuracy",
        metadata={"help": f"which accuracy --eval-acc takes: {', '.join(VQA_METRICS)}"},
    )
    eval_args: str = field(
        default="{}",
        metadata={
            "help": "generation options of validation without --answers as a JSON object, "
            '{"beam": 5, "unnormalized": true} (default: beam 5, max_len_b = --max-tgt-length)'
        },
    )


class BoundedEnsemble(WatchedEnsemble):
    """Ends each sentence at its own ``limits``, Long [S], in steps; prompts differ in length, and
    stock beam search has one bound for all sentences of a batch."""

    limits: Optional[Tensor] = None
    eos: int

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: list[Any], *others: Any
    ) -> tuple[Tensor, Optional[Tensor]]:
        scores, attention = super().forward_decoder(tokens, encoder_outs, *others)
        if self.limits is None:
            return scores, attention
        sentences = encoder_outs[0].sentences
        last = self.limits[sentences] <= tokens.size(1) - 1
        last = last.repeat_interleave(scores.size(0) // sentences.numel()).unsqueeze(1)
        others_words = torch.arange(scores.size(1), device=scores.device) != self.eos
        return scores.masked_fill(last & others_words, -torch.inf), attention


class PromptedTrace(ExitTrace):
    """A trace of hypotheses whose prompts, Long lists without bos, were taken away."""

    prompts: list[list[int]]

    @classmethod
    def of(cls, trace: ExitTrace, prompts: list[list[int]]) -> "PromptedTrace":
        prompted = cls(trace.image_layers, trace.text_layers, trace.steps, trace.image_rows)
        prompted.prompts = prompts
        return prompted

    def depths(self, hypotheses: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
        whole = [[[*p, *hypo] for hypo in of] for p, of in zip(self.prompts, hypotheses)]
        found = super().depths(whole)
        return [[layers[len(p) :] for layers in of] for p, of in zip(self.prompts, found)]


@register_task("mue_vqa", dataclass=VqaConfig)
class MuEVqaTask(BeamSearchTask):
    """Question answering in OFA's format (its vqa_gen), open or over a closed set of answers.

    The papers give no thresholds for it: those of entailment, whose answers are as short.
    """

    prefix = "vqa"
    same_as_trained = (*OFATask.same_as_trained, "prompt_type")
    similarity_defaults: ClassVar[dict[str, Any]] = {
        "decoder_threshold": 0.95,
        "schedule": "static",
    }
    eval_options = ("eval_acc",)
    ensemble = BoundedEnsemble
    cfg: VqaConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.trie: Optional[AnswerTrie] = None
        self.prompts: list[list[int]] = []
        if self.cfg.answers:
            with usage_errors():
                tokens = read_answers(self.cfg.answers, self.encoder).values()
            self.trie = AnswerTrie(tokens, self.dictionary.eos())

    @classmethod
    def refuse_nonsense(cls, cfg: Any) -> None:
        super().refuse_nonsense(cfg)
        if cfg.prompt_type not in PROMPT_TYPES:
            raise ValueError(
                f"--prompt-type {cfg.prompt_type!r} is none of {', '.join(PROMPT_TYPES)}"
            )
        if cfg.vqa_metric not in VQA_METRICS:
            raise ValueError(f"--vqa-metric {cfg.vqa_metric!r} is none of {', '.join(VQA_METRICS)}")

    def examples(self, path: Any, split: str, load_image: ImageLoader) -> QuestionExamples:
        return QuestionExamples(
            path,
            self.encoder,
            load_image,
            train=is_training(split),
            selected_cols=self.cfg.selected_cols,
            max_src_length=self.cfg.max_src_length,
            max_tgt_length=self.cfg.max_tgt_length,
            prompt_type=self.cfg.prompt_type,
            trie=self.trie,
        )

    # ------------------------------------------------------------------ generation

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        if self.trie is not None:
            refuse_search(args, len(self.trie.answers))
            nbest = getattr(args, "nbest", 1)
            return AllCandidateGenerator(models, self.trie, self.dictionary.pad(), nbest)
        if self.cfg.prompt_type == "none":
            return super().make_generator(models, args, **options)
        if self.cfg.prompt_type == "src":
            raise UsageError(
                "--prompt-type src without --answers: beam search would end where the prompt "
                "does. Use prev_output or none"
            )
        if not getattr(args, "unnormalized", False):
            raise UsageError(
                "--prompt-type prev_output without --answers needs --unnormalized, as OFA has it: "
                "beam search would divide scores by the length of prompt and answer together"
            )
        if getattr(args, "prefix_size", 0):
            raise UsageError("--prefix-size is not supported with --prompt-type prev_output")
        generator = super().make_generator(models, args, **options)
        if hasattr(generator, "max_len_a"):
            generator.max_len_a += 1  # room for the prompt, which is no longer than the source
            generator.model.eos = self.dictionary.eos()
        return generator

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> list[list[dict[str, Tensor]]]:
        """Hypotheses of a batch; prompts, which stock beam search is forced through, are taken off
        again, so that a hypothesis and its score are the answer's alone."""
        if self.trie is not None:
            return OFATask.generate(self, generator, models, sample, **forced)
        if self.cfg.prompt_type == "none" or not hasattr(generator, "max_len_a"):
            return super().generate(generator, models, sample, **forced)
        prev, lengths = sample["net_input"]["prev_output_tokens"], sample["prompt_lengths"]
        longest = int(lengths.max())
        prompts = prev[:, 1:longest].clone()
        behind = prompts.new_tensor(range(1, longest)) >= lengths[:, None]
        prompts = prompts.masked_fill(behind, self.dictionary.pad())
        forced["prefix_tokens"] = prompts if prompts.numel() else None
        generator.model.limits = self.step_limits(generator, sample)
        hypotheses = super().generate(generator, models, sample, **forced)
        cuts = (lengths - 1).tolist()
        self.prompts = [row[:cut] for row, cut in zip(prompts.tolist(), cuts)]
        for cut, of_sentence in zip(cuts, hypotheses):
            for hypothesis in of_sentence:
                for name in ("tokens", "positional_scores"):
                    hypothesis[name] = hypothesis[name][cut:]
                hypothesis["score"] = hypothesis["positional_scores"].sum()
        return hypotheses

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        if self.trie is not None:
            return generator.step_limits(sample["prompt_lengths"])
        limits = super().step_limits(generator, sample)
        if limits is None or self.cfg.prompt_type == "none":
            return limits
        return limits - sample["net_input"]["src_lengths"] + sample["prompt_lengths"] - 1

    def traces(self, generator: Any, models: Sequence[Any]) -> list[Optional[ExitTrace]]:
        if self.trie is not None:
            return generator.traces()
        found = super().traces(generator, models)
        if self.cfg.prompt_type == "none":
            return found
        return [trace and PromptedTrace.of(trace, self.prompts) for trace in found]

    def scored_words(self) -> Optional[int]:
        return None if self.trie is None else len(self.trie.choices())

    # ------------------------------------------------------------------ validation

    def validation_generator(self, model: Any) -> Any:
        if self.trie is not None:
            return self.make_generator([model], Namespace())
        args = eval_args(self.cfg)
        if self.cfg.prompt_type != "none":
            args.unnormalized = True
        return self.make_generator([model], args)

    def validation_sums(self, sample: dict[str, Any], hypotheses: list[str]) -> dict[str, float]:
        accuracy = VQA_METRICS[self.cfg.vqa_metric]
        total = 0.0
        rows = zip(hypotheses, sample["references"], sample["uniq_ids"])
        for hypothesis, answers, name in rows:
            if self.cfg.vqa_metric == "gqa_accuracy":
                if len(answers) != 1:
                    raise ValueError(f"question {name} has {len(answers)} answers, GQA's have one")
            else:
                ten_answers(answers, f"question {name}")
            total += accuracy(hypothesis, answers)
        return dict(zip(ACCURACY, (total, float(len(hypotheses)))))

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Adds ``vqa_acc``, in percent, of the whole split."""
        super().reduce_metrics(logging_outputs, criterion)
        log_mean("vqa_acc", logging_outputs, ACCURACY, scale=100)

"""What the tasks that generate words by stock beam search have in common."""

import copy
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Optional

from fairseq.tasks import FairseqTask
from torch import Tensor

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.search.generation import (
    UNSUPPORTED,
    WatchedEnsemble,
    generation_options,
    refuse_broken,
    refuse_options,
    step_limits,
)
from ofa_exit.plugin.target_words import TargetWords
from ofa_exit.plugin.tasks.base import OFATask

# Each would give words away that validation is to find.
_NOT_IN_VALIDATION = dict.fromkeys(
    ("score_reference", "prefix_size"), "validation generates from the picture alone"
)


class BeamSearchTask(OFATask):
    """A task with the option ``eval_args``; beam search is fairseq's own."""

    ensemble: type[WatchedEnsemble] = WatchedEnsemble
    """What the search asks for words."""
    words: Optional[TargetWords] = None
    """What is searched among, where it is not the whole vocabulary."""

    @classmethod
    def refuse_nonsense(cls, cfg: Any) -> None:
        super().refuse_nonsense(cfg)
        refuse_options(eval_args(cfg), {**UNSUPPORTED, **_NOT_IN_VALIDATION})

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
            if getattr(args, "lm_path", None) or options.get("prefix_allowed_tokens_fn"):
                raise UsageError(
                    "--lm-path scores the whole vocabulary: leave it or --target-words out"
                )
            task = copy.copy(self)
            task.dictionary = self.words
        return FairseqTask.build_generator(task, self.ensemble(models, self.words), args, **options)

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

    def validation_generator(self, model: Any) -> Any:
        return self.make_generator([model], eval_args(self.cfg))


def _refuse_broken(generator: Any, sample: dict[str, Any]) -> None:
    if hasattr(generator, "model"):  # not with --score-reference
        refuse_broken(generator.model.broken, sample["uniq_ids"])


def eval_args(cfg: Any) -> Namespace:
    """Generation options of validation; raises ValueError on what are none."""
    return generation_options("--eval-args", cfg.eval_args, max_len_b=cfg.max_tgt_length)

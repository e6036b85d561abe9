"""Base of the tasks that generate words by fairseq's beam search."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Optional

from fairseq.tasks import FairseqTask
from torch import Tensor

from ofa_exit.plugin.drafts import allowed_words, drafts_within, is_lossless
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.search.ensemble import WatchedEnsemble, reject_broken
from ofa_exit.plugin.search.options import (
    UNSUPPORTED,
    check_greedy,
    check_search,
    check_strategy,
    check_vocabulary,
    generation_options,
    reject_options,
)
from ofa_exit.plugin.tasks.base import OFATask
from ofa_exit.plugin.tasks.generation import Hyps
from ofa_exit.plugin.tasks.references import reject_without_references

# Both reveal words of the reference.
_NOT_IN_VALIDATION = dict.fromkeys(
    ("score_reference", "prefix_size"), "validation generates from the image alone"
)
_FAILING = {"diverse_beam_groups": "fairseq's search fails with it"}


class BeamSearchTask(OFATask):
    """A task with the option ``eval_args`` that generates by beam search."""

    ensemble: type[WatchedEnsemble] = WatchedEnsemble
    """What beam search asks for word scores."""

    @classmethod
    def check_options(cls, cfg: Any) -> None:
        super().check_options(cfg)
        args = eval_args(cfg)
        reject_options(args, {**UNSUPPORTED, **_NOT_IN_VALIDATION})
        if is_lossless(cfg) and any(getattr(cfg, option) for option in cls.eval_options):
            check_greedy(args, lambda name: f"--eval-args: {name}")

    @classmethod
    def searches(cls, cfg: Any) -> bool:
        answers = getattr(cfg, "answers", None) or getattr(cfg, "ans2label_file", None)
        among = getattr(cfg, "val_inference_type", None) == "beamsearch"
        return not answers or among or getattr(cfg, "beam_search_vqa_eval", False)

    @classmethod
    def check_generation(cls, cfg: Any, args: Any) -> None:
        super().check_generation(cfg, args)
        reject_options(args, _FAILING)
        if cls.searches(cfg) and not args.score_reference:
            check_search(args)
            check_strategy(args)
            if is_lossless(cfg):
                check_greedy(args)

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        reject_options(args, _FAILING)
        if not getattr(args, "score_reference", False):
            with usage_errors():
                check_search(args)
                check_strategy(args)
                check_vocabulary(args, len(self.dictionary))
            if is_lossless(self.cfg):
                check_greedy(args)
            return FairseqTask.build_generator(self, self.ensemble(models), args, **options)
        if self.exit_policy is not None or is_lossless(self.cfg):
            option = "--exit-lossless" if self.exit_policy is None else "--exit-policy"
            raise UsageError(f"--score-reference scores at full depth: leave {option} out")
        return FairseqTask.build_generator(self, models, args)

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> Hyps:
        if not hasattr(generator, "max_len_a"):
            reject_without_references(sample, "--score-reference")
        allowed = None
        if is_lossless(self.cfg):
            ensemble = getattr(generator, "model", None)
            allowed = allowed_words(
                forced.get("prefix_tokens"),
                self.dictionary.pad(),
                getattr(ensemble, "trie", None),
                getattr(ensemble, "prompt_lengths", None),
            )
        try:
            with drafts_within(models, allowed):
                hyps = super().generate(generator, models, sample, **forced)
        except (AssertionError, RuntimeError):
            # With NaN scores the search may have no word to continue with.
            _reject_broken(generator, sample)
            raise
        _reject_broken(generator, sample)
        return hyps

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        """Return N of MuE Eq. 11, Long [S]: min(⌊a·length + b⌋, the model's positions).

        a and b are --max-len-a and --max-len-b. Differs from the search's own bound: it takes the
        sentence's length, not the longest of the batch, so that exits do not depend on the batch.
        """
        if not hasattr(generator, "max_len_a"):  # --score-reference
            return None
        lengths = sample["net_input"]["src_lengths"]
        if not generator.match_source_len:
            lengths = (generator.max_len_a * lengths + generator.max_len_b).long()
        return lengths.clamp(max=generator.max_len)

    def validation_generator(self, model: Any) -> Any:
        return self.make_generator([model], eval_args(self.cfg))


def _reject_broken(generator: Any, sample: dict[str, Any]) -> None:
    if hasattr(generator, "model"):  # not with --score-reference
        reject_broken(generator.model.broken, sample["uniq_ids"])


def eval_args(cfg: Any) -> Namespace:
    """Return the generation options of validation, ``--eval-args``."""
    return generation_options("--eval-args", cfg.eval_args, max_len_b=cfg.max_tgt_length)

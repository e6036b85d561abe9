"""What the tasks that generate words by stock beam search have in common."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Optional

from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks import FairseqTask
from torch import Tensor

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.generation import (
    UNSUPPORTED,
    WatchedEnsemble,
    refuse_broken,
    refuse_options,
    step_limits,
)
from ofa_exit.plugin.task import OFATask

# Each would give words away that validation is to find.
_NOT_IN_VALIDATION = dict.fromkeys(
    ("score_reference", "prefix_size"), "validation generates from the picture alone"
)


class BeamSearchTask(OFATask):
    """A task with the option ``eval_args``; beam search is fairseq's own."""

    ensemble: type[WatchedEnsemble] = WatchedEnsemble
    """What the search asks for words."""

    @classmethod
    def refuse_nonsense(cls, cfg: Any) -> None:
        super().refuse_nonsense(cfg)
        refuse_options(eval_args(cfg), {**UNSUPPORTED, **_NOT_IN_VALIDATION})

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        if getattr(args, "score_reference", False) and self.exit_policy is not None:
            raise UsageError("--score-reference scores at full depth: leave --exit-policy out")
        refuse_options(args, {"diverse_beam_groups": "fairseq's search fails on it"})
        if getattr(args, "score_reference", False):
            return FairseqTask.build_generator(self, models, args)
        return FairseqTask.build_generator(self, self.ensemble(models), args, **options)

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> list[list[dict[str, Tensor]]]:
        try:
            hypotheses = super().generate(generator, models, sample, **forced)
        except AssertionError:  # beam search found no word to go on with
            _refuse_broken(generator, sample)
            raise
        _refuse_broken(generator, sample)
        return hypotheses

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
    try:
        options = json.loads(cfg.eval_args)
    except ValueError as error:
        raise ValueError(f"--eval-args {cfg.eval_args!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'--eval-args {cfg.eval_args!r}: give a JSON object, {{"beam": 5}}')
    known = {option.name for option in fields(GenerationConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"--eval-args: {', '.join(unknown)} is no generation option of fairseq "
            "(names as in beam, max_len_b, no_repeat_ngram_size)"
        )
    return Namespace(**{"max_len_b": cfg.max_tgt_length, **options})

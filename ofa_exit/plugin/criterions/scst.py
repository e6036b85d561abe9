"""The criterion ``mue_scst``: CIDEr optimisation of captions, on every decoder layer."""

import logging
import math
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import torch
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.distributed.utils import get_data_parallel_rank, get_data_parallel_world_size
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from ofa_exit.evaluation.metrics.cider_d import COMMAND, CiderD, DocumentFrequencies
from ofa_exit.objectives.self_critical import BASELINES, advantages, sampled_targets
from ofa_exit.plugin.criterions.mue import MuELoss
from ofa_exit.plugin.saved_arguments import resolved
from ofa_exit.plugin.search.options import (
    DEFAULTS,
    UNSUPPORTED,
    generation_options,
    reject_options,
)
from ofa_exit.plugin.tasks.caption import MuECaptionTask

logger = logging.getLogger(__name__)

SCST_BASELINES = ChoiceEnum(list(BASELINES))
# With these, captions are not the model's own choice.
_NOT_IN_TRAINING = {
    **dict.fromkeys(
        ("score_reference", "prefix_size"), "captions are sampled from the image alone"
    ),
    "match_source_len": "a caption's length does not depend on the prompt's",
}
# With these, samples are drawn from another distribution than the one in the loss.
_BIASING = (
    "temperature",
    "sampling_topk",
    "sampling_topp",
    "min_len",
    "no_repeat_ngram_size",
)
# Options of sampling that do not apply to greedy decoding.
_SAMPLING = ("beam", "nbest", "sampling", "sampling_topk", "sampling_topp", "temperature")


@dataclass
class MuESCSTConfig(FairseqDataclass):
    cider_frequencies: Optional[str] = field(
        default=None,
        metadata={"help": f"document frequencies of the training references: {COMMAND}"},
    )
    scst_baseline: SCST_BASELINES = field(  # type: ignore[valid-type]
        default="greedy",
        metadata={
            "help": "reward that a sample's reward is compared with: greedy = that of the greedy "
            "caption, mean = the mean of the image's other samples (as in OFA; use it for "
            "--layer-weights other than last)"
        },
    )
    scst_args: str = field(
        default="{}",
        metadata={
            "help": "generation options of the samples as a JSON object; beam = samples per image, "
            'as in {"beam": 5, "max_len_b": 16} (default: sampling, beam 5, max_len_b = '
            '--max-tgt-length); {"sampling": false} uses the hypotheses of beam search, as in OFA'
        },
    )
    layer_weights: str = field(
        default="uniform",
        metadata={
            "help": "weights of the decoder layers' losses: uniform (MuE), rising, the number of "
            "the layer (CALM), last (plain OFA's loss) or one number per layer, separated by commas"
        },
    )
    sentence_avg: bool = II("optimization.sentence_avg")


def _seed_of_this_process() -> AbstractContextManager:
    """Give each of several processes its own random numbers; fairseq seeds all alike."""
    if get_data_parallel_world_size() == 1:
        return nullcontext()
    seed = int(torch.randint(2**31, ()))  # the same in all processes, new at every call
    return utils.set_torch_seed(seed + get_data_parallel_rank())


class Sampled(NamedTuple):
    """K captions for each of S images, with their rewards (CIDEr-D; 1 is 100 in papers)."""

    captions: list[Tensor]  # S·K, Long [T] each, grouped by image
    rewards: Tensor  # [S, K]
    greedy: Optional[Tensor]  # [S]
    limit: int  # words after which the end is forced


@register_criterion("mue_scst", dataclass=MuESCSTConfig)
class MuESCST(MuELoss):
    """Self-critical sequence training (Rennie et al. 2017) with CIDEr-D as reward.

    In training, captions are sampled at full depth without dropout. Each token's cross-entropy is
    weighted by the advantage of its caption over the baseline. The loss is the weighted mean over
    decoder layers, as in ``mue_loss``: all layers learn the words that the last one chose.

    The gradient is unbiased only if the loss computes the probabilities that the samples were
    drawn from. Otherwise samples, which are mostly worse than the greedy caption, push the model
    away from all its captions. Train with ``--dropout 0 --freeze-resnet``, because batch norm
    differs between sampling and loss. Earlier layers always learn from the last one's samples. Use
    ``--scst-baseline mean`` for them: the advantages of an image's samples sum to 0.

    In validation the loss is ``mue_loss``; validate with ``--eval-cider``.

    Logged: ``loss`` and ``loss_layer_1`` … per token (per caption with ``--sentence-avg``);
    ``reward``, ``baseline`` and, if it is decoded, ``reward_greedy``, all ×100;
    ``caption_length`` in tokens.

    Differs from OFA: captions are sampled and compared with the greedy caption. OFA compares the
    hypotheses of beam search with each other (``--scst-args``, ``--scst-baseline``).
    """

    trains_on_all_references = True

    def __init__(
        self,
        task: Any,
        cider_frequencies: Optional[str],
        scst_baseline: Any,
        scst_args: str,
        layer_weights: str,
        sentence_avg: bool,
    ) -> None:
        if not isinstance(task, MuECaptionTask):
            raise ValueError("--criterion mue_scst needs --task mue_caption")
        if not cider_frequencies:
            raise ValueError(
                "--criterion mue_scst needs --cider-frequencies FILE.npz, the document frequencies "
                f"of the training references. Create the file with {COMMAND}"
            )
        super().__init__(task, 0.0, layer_weights, 0.0, 0, False, sentence_avg)
        self.task: MuECaptionTask = task
        self.baseline = str(scst_baseline)
        self.options = generation_options(
            "--scst-args", scst_args, beam=5, sampling=True, max_len_b=task.cfg.max_tgt_length
        )
        reject_options(self.options, {**UNSUPPORTED, **_NOT_IN_TRAINING})
        self._warn_of_bias()
        least = 2 if self.baseline == "mean" else 1
        if self.options.beam < least:
            raise ValueError(
                f"--scst-args: beam is {self.options.beam}; --scst-baseline {self.baseline} needs "
                f"at least {least} captions per image"
            )
        self.cider_frequencies = cider_frequencies
        self._cider: Optional[CiderD] = None
        if not resolved(task.cfg.path):  # a training: before it reads weights
            self._cider = self.cider

    def _warn_of_bias(self) -> None:
        biasing = [
            f"--scst-args {option}"
            for option in _BIASING
            if getattr(self.options, option, DEFAULTS[option]) != DEFAULTS[option]
        ]
        if self.options.sampling and biasing:
            logger.warning(
                "%s: samples are drawn from another distribution than the one in the loss, so the "
                "gradient is biased",
                ", ".join(biasing),
            )

    @property
    def cider(self) -> CiderD:
        """Return CIDEr-D. Its file is not read by fairseq-validate, which does not need it."""
        if self._cider is None:
            self._cider = CiderD(DocumentFrequencies.load(self.cider_frequencies))
        return self._cider

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number that fairseq divides it by, and what to log.

        Raises:
            FloatingPointError: a reward is not finite. The message names the images.
        """
        if not self.training:
            return super().forward(model, sample, reduce)
        sampled = self.sample(model, sample)
        weights, baseline = advantages(sampled.rewards, sampled.greedy)
        prev_output_tokens, target, ntokens = sampled_targets(
            sampled.captions,
            sampled.limit,
            self.task.dictionary.bos(),
            self.padding_idx,
        )
        # The S·K captions are decoder rows, grouped by image over the encoder's S sentences.
        weighted = {
            "id": sample["id"],
            "net_input": {**sample["net_input"], "prev_output_tokens": prev_output_tokens},
            "target": target,
            "ntokens": ntokens,
            "nsentences": len(sampled.captions),
            "conf": weights.flatten(),
        }
        loss, sample_size, log = super().forward(model, weighted, reduce)
        del log["nll_loss"]  # weighted by advantages, it is not a likelihood
        # For fairseq's speeds and batch sizes, which count images.
        log["nsentences"] = sample["nsentences"]
        log["captions"] = len(sampled.captions)
        log["reward_sum"] = sampled.rewards.sum()
        log["baseline_sum"] = baseline.sum()
        if sampled.greedy is not None:
            log["greedy_sum"] = sampled.greedy.sum() * sampled.rewards.size(1)
        return loss, sample_size, log

    def sample(self, model: Any, sample: dict[str, Any]) -> Sampled:
        """Sample captions, decode greedily if that is the baseline, and score both."""
        model.eval()
        try:
            generator = self.task.make_generator([model], self.options)
            with _seed_of_this_process():
                hyps = self.task.generate(generator, [model], sample)
            greedy = []
            if self.baseline == "greedy":
                args = {k: v for k, v in vars(self.options).items() if k not in _SAMPLING}
                searcher = self.task.make_generator([model], Namespace(**args, beam=1))
                greedy_hyps = self.task.generate(searcher, [model], sample)
                greedy = [image_hyps[0]["tokens"] for image_hyps in greedy_hyps]
        finally:
            model.train()
        count = generator.beam_size
        # Beam search may return fewer than K hypotheses: repeat the best one.
        captions = [
            hyp["tokens"]
            for image_hyps in hyps
            for hyp in [*image_hyps, *image_hyps[:1] * (count - len(image_hyps))]
        ]
        references = [refs for refs in sample["references"] for _ in range(count)]
        scores = self.cider.scores(
            [self.task.text(tokens) for tokens in (*captions, *greedy)],
            [*references, *sample["references"][: len(greedy)]],
        )
        device = sample["target"].device
        rewards = torch.tensor(scores, device=device) / 100
        self._reject_broken(scores, sample, count)
        source_length = sample["net_input"]["src_tokens"].size(1)
        return Sampled(
            captions,
            rewards[: len(captions)].view(-1, count),
            rewards[len(captions) :] if greedy else None,
            min(
                int(generator.max_len_a * source_length + generator.max_len_b),
                generator.max_len - 1,
            ),
        )

    @staticmethod
    def _reject_broken(scores: list[float], sample: dict[str, Any], count: int) -> None:
        # Scores of S·K samples, grouped by image, then of S greedy captions.
        names = sample["uniq_ids"]
        images = [name for name in names for _ in range(count)] + names
        broken = {name for name, score in zip(images, scores) if not math.isfinite(score)}
        if broken:
            raise FloatingPointError(
                f"rewards are not finite for {', '.join(sorted(broken)[:10])}: check their "
                "references, and create the document frequencies again"
            )

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log means over all workers' captions, and in validation what ``mue_loss`` logs."""

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        captions, sample_size = total("captions"), total("sample_size")
        if not captions:
            super().reduce_metrics(logging_outputs)
            return
        metrics.log_scalar("loss", total("loss") / sample_size, sample_size, round=4)
        for key in dict.fromkeys(key for log in logging_outputs for key in log):
            if key.startswith("loss_layer_"):
                value = total(key) / sample_size
                metrics.log_scalar(key, value, sample_size, priority=1000, round=4)
        logged = {"reward": "reward_sum", "baseline": "baseline_sum", "reward_greedy": "greedy_sum"}
        for name, key in logged.items():
            if any(key in log for log in logging_outputs):
                metrics.log_scalar(name, 100 * total(key) / captions, captions, round=2)
        metrics.log_scalar("caption_length", total("ntokens") / captions, captions, round=2)

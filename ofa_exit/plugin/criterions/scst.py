"""The criterion ``mue_scst``: the CIDEr stage of captioning, on every decoder layer."""

import logging
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
from ofa_exit.plugin.search.generation import (
    DEFAULTS,
    UNSUPPORTED,
    generation_options,
    refuse_options,
)
from ofa_exit.plugin.tasks.caption import MuECaptionTask

logger = logging.getLogger(__name__)

SCST_BASELINES = ChoiceEnum(list(BASELINES))
# Each would make captions that the model did not choose by itself.
_NOT_IN_TRAINING = {
    **dict.fromkeys(
        ("score_reference", "prefix_size"), "captions are sampled from the picture alone"
    ),
    "match_source_len": "a caption's length has nothing to do with the prompt's",
}
# Each draws samples by other probabilities than those that the loss sees.
_DRAWN_OTHERWISE = (
    "temperature",
    "sampling_topk",
    "sampling_topp",
    "min_len",
    "no_repeat_ngram_size",
)
# How the samples are drawn, which greedy decoding is not.
_DRAWING = ("beam", "nbest", "sampling", "sampling_topk", "sampling_topp", "temperature")


@dataclass
class MuESCSTConfig(FairseqDataclass):
    cider_frequencies: Optional[str] = field(
        default=None,
        metadata={"help": f"document frequencies of the training references: {COMMAND}"},
    )
    scst_baseline: SCST_BASELINES = field(  # type: ignore[valid-type]
        default="greedy",
        metadata={
            "help": "what a sample's reward is compared with: greedy = the reward of the greedy "
            "caption, mean = the mean reward of the image's other samples (as in OFA; for "
            "--layer-weights other than last)"
        },
    )
    scst_args: str = field(
        default="{}",
        metadata={
            "help": "generation options of the samples as a JSON object, beam = samples an image, "
            '{"beam": 5, "max_len_b": 16} (default: sampling, beam 5, max_len_b = '
            '--max-tgt-length); {"sampling": false} takes the hypotheses of beam search, as in OFA'
        },
    )
    layer_weights: str = field(
        default="uniform",
        metadata={
            "help": "weights of the decoder layers' losses: uniform (MuE), last (no exits, the "
            "loss of plain OFA) or a number for each layer, separated by commas"
        },
    )
    sentence_avg: bool = II("optimization.sentence_avg")


def _noise_of_this_process() -> AbstractContextManager:
    """Random numbers of its own for each of several processes: fairseq seeds all alike."""
    if get_data_parallel_world_size() == 1:
        return nullcontext()
    drawn = int(torch.randint(2**31, ()))  # the same everywhere, and other at every call
    return utils.set_torch_seed(drawn + get_data_parallel_rank())


class Sampled(NamedTuple):
    """Captions of S images, K each, with their rewards (CIDEr-D, 1 = what papers call 100)."""

    captions: list[Tensor]  # S * K, Long [T] each, those of an image side by side
    rewards: Tensor  # [S, K]
    greedy: Optional[Tensor]  # [S]
    limit: int  # words before the end is forced


@register_criterion("mue_scst", dataclass=MuESCSTConfig)
class MuESCST(MuELoss):
    """Self-critical sequence training (Rennie et al. 2017) with CIDEr-D as reward.

    In training, captions are sampled at full depth without dropout; each token's cross-entropy is
    weighted by how much better its caption is than the baseline, and the loss is the weighted mean
    over decoder layers, as in ``mue_loss``: all layers are taught the words that the last one
    chose.

    A baseline leaves the gradient unbiased only where the loss sees the probabilities that the
    samples were drawn by; else samples that are mostly worse than the greedy caption push the
    model away from all that it says. So train with ``--dropout 0 --freeze-resnet`` (batch norm
    differs between sampling and loss). The layers before the last learn from the last one's
    samples all the same; ``--scst-baseline mean``, by which an image's advantages add up to 0,
    is for them.

    In validation the loss is ``mue_loss`` itself, and ``--eval-cider`` the goal.

    Logged: ``loss`` and ``loss_layer_1`` … per token (per caption with ``--sentence-avg``),
    ``reward``, ``baseline`` and, where it is decoded, ``reward_greedy`` x 100, ``caption_length``
    in tokens.

    Differs from OFA: samples are drawn, and compared with the greedy caption, where OFA compares
    the hypotheses of beam search with one another (``--scst-args``, ``--scst-baseline``).
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
            raise ValueError("--criterion mue_scst rewards captions: it needs --task mue_caption")
        if not cider_frequencies:
            raise ValueError(
                "--criterion mue_scst needs --cider-frequencies FILE.npz, the document frequencies "
                f"of the training references. Make the file by {COMMAND}"
            )
        super().__init__(task, 0.0, layer_weights, 0.0, 0, False, sentence_avg)
        self.task: MuECaptionTask = task
        self.baseline = str(scst_baseline)
        self.options = generation_options(
            "--scst-args", scst_args, beam=5, sampling=True, max_len_b=task.cfg.max_tgt_length
        )
        refuse_options(self.options, {**UNSUPPORTED, **_NOT_IN_TRAINING})
        self._tell_of_bias()
        least = 2 if self.baseline == "mean" else 1
        if self.options.beam < least:
            raise ValueError(
                f"--scst-args: beam is {self.options.beam}; --scst-baseline {self.baseline} needs "
                f"at least {least} captions an image"
            )
        self.cider_frequencies = cider_frequencies
        self._cider: Optional[CiderD] = None

    def _tell_of_bias(self) -> None:
        if not self.options.sampling:
            return
        named = [
            option
            for option in _DRAWN_OTHERWISE
            if getattr(self.options, option, DEFAULTS[option]) != DEFAULTS[option]
        ]
        if named or self.task.cfg.target_words:
            logger.warning(
                "%s: samples are drawn by other probabilities than those that the loss sees, and "
                "the gradient is biased",
                ", ".join([f"--scst-args {option}" for option in named] or ["--target-words"]),
            )

    @property
    def cider(self) -> CiderD:
        """Read when training begins: validation of a checkpoint does without the file."""
        if self._cider is None:
            self._cider = CiderD(DocumentFrequencies.load(self.cider_frequencies))
        return self._cider

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The summed loss, the number fairseq divides it by, and what to log.

        Raises FloatingPointError that names the images whose rewards are not numbers.
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
        # The captions of an image are rows side by side over one encoder output: N = S·K.
        weighted = {
            "id": sample["id"],
            "net_input": {**sample["net_input"], "prev_output_tokens": prev_output_tokens},
            "target": target,
            "ntokens": ntokens,
            "nsentences": len(sampled.captions),
            "conf": weights.flatten(),
        }
        loss, sample_size, log = super().forward(model, weighted, reduce)
        del log["nll_loss"]  # weighted by advantages it is no likelihood
        # fairseq's speeds and batch sizes count images.
        log["nsentences"] = sample["nsentences"]
        log["captions"] = len(sampled.captions)
        log["reward_sum"] = sampled.rewards.sum()
        log["baseline_sum"] = baseline.sum()
        if sampled.greedy is not None:
            log["greedy_sum"] = sampled.greedy.sum() * sampled.rewards.size(1)
        return loss, sample_size, log

    def sample(self, model: Any, sample: dict[str, Any]) -> Sampled:
        """Samples captions, and decodes greedily if that is the baseline; scores them."""
        model.eval()
        try:
            generator = self.task.make_generator([model], self.options)
            with _noise_of_this_process():
                found = self.task.generate(generator, [model], sample)
            greedy = []
            if self.baseline == "greedy":
                searched = {k: v for k, v in vars(self.options).items() if k not in _DRAWING}
                searcher = self.task.make_generator([model], Namespace(**searched, beam=1))
                greedy = [of[0]["tokens"] for of in self.task.generate(searcher, [model], sample)]
        finally:
            model.train()
        count = generator.beam_size
        # Beam search may run out of hypotheses; the best then fills up the row.
        captions = [
            hypothesis["tokens"]
            for of in found
            for hypothesis in [*of, *of[:1] * (count - len(of))]
        ]
        references = [refs for refs in sample["references"] for _ in range(count)]
        scores = self.cider.scores(
            [self.task.text(tokens) for tokens in (*captions, *greedy)],
            [*references, *sample["references"][: len(greedy)]],
        )
        device = sample["target"].device
        rewards = torch.tensor(scores, device=device) / 100
        drawn, searched_rewards = rewards[: len(captions)], rewards[len(captions) :]
        self._refuse_broken(scores, sample, count)
        source_length = sample["net_input"]["src_tokens"].size(1)
        return Sampled(
            captions,
            drawn.view(-1, count),
            searched_rewards if greedy else None,
            min(
                int(generator.max_len_a * source_length + generator.max_len_b),
                generator.max_len - 1,
            ),
        )

    @staticmethod
    def _refuse_broken(scores: list[float], sample: dict[str, Any], count: int) -> None:
        names = sample["uniq_ids"]
        drawn = len(names) * count
        broken = {
            names[at // count if at < drawn else at - drawn]
            for at, score in enumerate(scores)
            if score != score or abs(score) == float("inf")
        }
        if broken:
            raise FloatingPointError(
                f"rewards that are not finite for {', '.join(sorted(broken)[:10])}: look at their "
                "references, and make the document frequencies again"
            )

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over all workers' captions, and in validation what ``mue_loss`` logs."""

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

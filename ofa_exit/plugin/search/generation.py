"""Around stock beam search: what it cannot do here, broken numbers, and the report at the end."""

import gc
import json
import logging
import os
import weakref
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, Optional

import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from ofa_exit.data.dataset import OFADataset
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.target_words import TargetWords

logger = logging.getLogger(__name__)

# Generation option -> why it is refused, for every task.
UNSUPPORTED = {
    "print_alignment": "the decoder hands out no attention",
    "replace_unk": "there is no source sentence whose words could replace <unk>",
    "constraints": "the data holds no constraints",
    **dict.fromkeys(
        (
            "print_step",
            "retain_iter_history",
            "iter_decode_eos_penalty",
            "iter_decode_max_iter",
            "iter_decode_force_max_iter",
            "iter_decode_with_beam",
            "iter_decode_with_external_reranker",
            "decoding_format",
        ),
        "words are generated one after another",
    ),
    **dict.fromkeys(
        ("retain_dropout", "retain_dropout_modules"), "the model's dropout is for training alone"
    ),
    **dict.fromkeys(
        ("beam_mt", "max_len_a_mt", "max_len_b_mt", "lenpen_mt"), "the model has one decoder"
    ),
}
# Every generation option of fairseq and what it is when it is not given.
DEFAULTS = {option.name: option.default for option in fields(GenerationConfig)}


def refuse_options(args: Any, reasons: dict[str, str]) -> None:
    """Raises UsageError for a generation option, with its reason, that is not at its default."""
    for option, reason in reasons.items():
        if getattr(args, option, DEFAULTS[option]) != DEFAULTS[option]:
            raise UsageError(f"--{option.replace('_', '-')} is not supported: {reason}")


def generation_options(flag: str, text: str, **defaults: Any) -> Namespace:
    """The options that ``flag`` gives as a JSON object; raises ValueError on what are none."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'{flag} {text!r}: give a JSON object, {{"beam": 5}}')
    known = {option.name for option in fields(GenerationConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"{flag}: {', '.join(unknown)} is no generation option of fairseq "
            "(names as in beam, max_len_b, no_repeat_ngram_size)"
        )
    return Namespace(**{**defaults, **options})


class WatchedEnsemble(EnsembleModel):
    """fairseq's ensemble, which notes the sentences whose word scores are not numbers.

    Stock beam search takes them for impossible words and goes on, to a wrong sentence or an
    assertion. Noting costs one element a hypothesis and no host read. words: what is searched
    among, where it is not the whole vocabulary.
    """

    def __init__(self, models: Sequence[Any], words: Optional[TargetWords] = None) -> None:
        super().__init__(models)
        self.broken: Optional[Tensor] = None
        self.words = words

    def forward_encoder(self, net_input: dict[str, Tensor]) -> list[Any]:
        encoder_outs = super().forward_encoder(net_input)
        sources = net_input["src_tokens"]
        self.broken = torch.zeros(sources.size(0), dtype=torch.bool, device=sources.device)
        return encoder_outs

    def forward_decoder(
        self,
        tokens: Tensor,
        encoder_outs: list[Any],
        incremental_states: list[dict[str, Any]],
        temperature: float = 1.0,
    ) -> tuple[Tensor, Optional[Tensor]]:
        if self.words is not None:
            tokens = self.words.full(tokens)
        scores, attention = super().forward_decoder(
            tokens, encoder_outs, incremental_states, temperature
        )
        sentences = encoder_outs[0].sentences
        # One score that is not a number makes all of its row so, by way of the softmax.
        rows = scores[:, 0].isnan().view(sentences.numel(), -1).any(dim=1)
        assert self.broken is not None
        self.broken[sentences] = self.broken[sentences] | rows
        return scores, attention


def refuse_broken(broken: Optional[Tensor], ids: Sequence[str]) -> None:
    """Raises FloatingPointError that names the sentences marked in ``broken`` Bool [S]."""
    if broken is None or not broken.any():
        return
    names = [name for name, bad in zip(ids, broken.tolist()) if bad]
    raise FloatingPointError(
        f"the model's word scores are not numbers (NaN) for {len(names)} of {len(ids)} samples of "
        f"a batch: {', '.join(names[:10])}{', …' * (len(names) > 10)}. Is the checkpoint sound "
        "(a training that diverged), and does it run without --fp16?"
    )


def step_limits(generator: Any, source_lengths: Tensor) -> Tensor:
    """Steps that the search may take for each sentence, Long [S]: N of MuE Eq. 11.

    min(⌊a·length + b⌋, the model's positions) with --max-len-a, --max-len-b. Differs from the
    search's own bound in taking the sentence's length, not that of the longest in its batch, so
    that no exit depends on the other sentences.
    """
    if generator.match_source_len:
        limits = source_lengths
    else:
        limits = (generator.max_len_a * source_lengths + generator.max_len_b).long()
    return limits.clamp(max=generator.max_len)


def at_end_of(owner: Any, action: Callable[..., None], *arguments: Any) -> None:
    """Calls ``action`` when ``owner`` is given up, at the latest when Python ends.

    fairseq-generate and fairseq-validate have no hook at their end; what they hold lives as long as
    they run. Copies in data-loading workers do nothing.
    """
    weakref.finalize(owner, _in_process, os.getpid(), action, *arguments)


def _in_process(process: int, action: Callable[..., None], *arguments: Any) -> None:
    if os.getpid() == process:
        action(*arguments)


def forget_failed_lookups() -> None:
    """Frees the frames that ended commands would otherwise leave behind for a while.

    What omegaconf does not find leaves cycles that hold the frame of the running command, and with
    it all that ``at_end_of`` waits for.
    """
    gc.collect()


class Pass:
    """How far a generation has come in its data set, which fairseq-generate tells nobody.

    iterator: fairseq's over the data set; None = the task is fed by hand, and that ends where its
    caller likes.
    """

    def __init__(self, iterator: Any = None) -> None:
        self.iterator = iterator
        self.in_batch = False  # stays True where a batch fails

    @property
    def ended(self) -> bool:
        """Whether every batch was fetched and the last one came through."""
        return self.iterator is None or (self.iterator.end_of_epoch() and not self.in_batch)

    @property
    def rows(self) -> int:
        """Rows of the data set, of this process's shard where it is parted."""
        of_shard = slice(self.iterator.shard_id, None, self.iterator.num_shards)
        return sum(map(len, self.iterator.frozen_batches[of_shard]))

    @property
    def shard(self) -> Optional[dict[str, int]]:
        """Which shard this is, from 0, of how many, and the rows of all; None = the whole."""
        if self.iterator is None or self.iterator.num_shards == 1:
            return None
        return {
            "shard": self.iterator.shard_id,
            "of": self.iterator.num_shards,
            "rows": self.rows,
            "all_rows": sum(map(len, self.iterator.frozen_batches)),
        }


def print_reports(reports: Sequence[GenerationReport], done: Pass, run: dict[str, Any]) -> None:
    """Prints each model's report, for people and as JSON, and closes its trace file.

    run: what a shard has in common with the others of its generation, `run_record`.

    To the standard output, where fairseq-generate prints what it finds. A pass that did not come to
    its end is headed INCOMPLETE, so that nobody, no program either, takes it for the whole; one
    that came nowhere has no report.
    """
    for number, report in enumerate(reports, start=1):
        report.close()
        of = f" of model {number} of {len(reports)}" if len(reports) > 1 else ""
        values = report.summary()
        if not done.ended:
            if not values["sentences"]:
                continue
            print(f"INCOMPLETE, {values['sentences']} of {done.rows} sentences: ", end="")
        print(f"Layers and time{of}:\n{report.table()}")
        mark = "" if done.ended else "INCOMPLETE "
        print(f"{mark}Exit summary{of}: {json.dumps(values)}", flush=True)
        if done.ended and done.shard:
            shard = {**done.shard, "run": run, "totals": asdict(report.totals())}
            print(f"Exit shard{of}: {json.dumps(shard)}", flush=True)


def log_rows(rows: OFADataset) -> None:
    """Logs which rows were skipped or hold unknown words."""
    for line in rows.summary():
        logger.warning(line)

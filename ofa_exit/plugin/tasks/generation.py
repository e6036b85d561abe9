"""The part of a task that generates: with exits, a clock and reports."""

import atexit
import time
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from ofa_exit.data.example import source_prompt
from ofa_exit.data.text import TextEncoder
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.plugin.calibrated import warn_of_search
from ofa_exit.plugin.drafts import build_drafting
from ofa_exit.plugin.errors import unwritten_errors, usage_errors
from ofa_exit.plugin.image_tokens import build_token_exits
from ofa_exit.plugin.reporting import log_rows, print_reports, run_record
from ofa_exit.plugin.saved_arguments import reference_layers
from ofa_exit.plugin.search.candidates import CandidateScorer
from ofa_exit.plugin.search.options import UNSUPPORTED, reject_options
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.data import DataTask
from ofa_exit.plugin.tasks.references import ShownReferences, reject_without_references
from ofa_exit.plugin.tasks.samples import complete_sample
from ofa_exit.plugin.vocabulary import OFADictionary
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.runtime.trace import ExitTrace

Hyps = list[list[dict[str, Tensor]]]
"""For each sentence its hypotheses, the best first, in fairseq's form."""


class GenerationTask(DataTask):
    """Base of ``OFATask``: generates for batches and reports where rows exit.

    After ``build_generator``, ``exit_reports`` holds one report per model on all that
    ``inference_step`` generates. They are printed after the last batch.
    """

    def __init__(
        self,
        cfg: OFATaskConfig,
        policy: Optional[ExitPolicy],
        dictionary: OFADictionary,
        encoder: TextEncoder,
    ) -> None:
        super().__init__(cfg, dictionary, encoder)
        self.exit_policy = policy
        self.exit_reports: list[GenerationReport] = []
        self.references = ShownReferences(dictionary, encoder.codec)
        self.run_record: dict[str, Any] = {}

    def set_exits(self, models: Sequence[Any], on: bool) -> None:
        """Set the models' exit policy, or remove it."""
        for model in models:
            if not on:
                model.configure_exits(None)
                continue
            model.configure_exits(
                self.exit_policy,
                self.cfg.exit_kv or "propagate",
                drafting=build_drafting(self.cfg, len(model.decoder.layers)),
                token_exits=build_token_exits(self.cfg),
            )

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        """Return the generator of the task, for the arguments of ``build_generator``."""
        raise NotImplementedError

    def build_generator(
        self,
        models: Sequence[Any],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: Optional[dict[str, Any]] = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """Return the generator for ``models``, set their exits and begin new reports."""
        reject_options(args, UNSUPPORTED)
        warn_of_search(self.cfg, args)
        generator = self.make_generator(
            models,
            args,
            seq_gen_cls=seq_gen_cls,
            extra_gen_cls_kwargs=extra_gen_cls_kwargs,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        )
        self.set_exits(models, on=True)
        self.exit_reports = []
        reference, symbol = reference_layers(self.cfg), self.dictionary.__getitem__
        for number, model in enumerate(models, start=1):
            trace_file = self.cfg.exit_trace
            if trace_file and number > 1:
                trace_file += f".{number}"
            with usage_errors():
                self.exit_reports.append(GenerationReport(model, trace_file, symbol, reference))
        self.references = ShownReferences(self.dictionary, self.encoder.codec)
        self.run_record = {}
        if self.progress.shard:
            self.run_record = run_record(self, args, models, self.progress.iterator.dataset)
        if self.progress.iterator is not None:
            # For a generation that fails, or whose last batch holds no usable row.
            atexit.register(self.end_generation)
        return generator

    def end_generation(self) -> None:
        """Print the reports, and log which rows were skipped."""
        atexit.unregister(self.end_generation)
        with unwritten_errors():
            print_reports(self.exit_reports, self.progress, self.run_record)
        log_rows(self.progress.iterator.dataset.rows)

    def inference_step(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> Hyps:
        """Generate for a batch and add it to the reports, which the last batch prints.

        Sets ``sample["target"]`` to all references of each sentence, joined by ``&&``, or to None
        if there are none. fairseq-generate prints it and passes it to the scorer. A sample without
        "references" is left as it is.

        Args:
            sample: a batch of the data set, or one made by hand, see ``complete_sample``.
            forced: fairseq's ``prefix_tokens`` and ``constraints``.
        """
        if forced.get("prefix_tokens") is not None:
            reject_without_references(sample, "--prefix-size")
        self.progress.in_batch = True
        batch = complete_sample(sample, self.prompt, self.dictionary.pad())
        start = time.perf_counter()
        hyps = self.generate(generator, models, batch, **forced)
        # Converted to lists before the clock is read, which waits for the device.
        tokens = [[hyp["tokens"].tolist() for hyp in sentence_hyps] for sentence_hyps in hyps]
        seconds = time.perf_counter() - start
        net_input = batch["net_input"]
        for report, trace in zip(self.exit_reports, self.traces(generator, models)):
            with unwritten_errors():
                report.add(
                    ids=batch["uniq_ids"],
                    trace=trace,
                    hypotheses=tokens,
                    text_tokens=net_input["src_lengths"].tolist(),
                    image_size=tuple(net_input["patch_images"].shape[-2:]),
                    seconds=seconds,
                    has_image=net_input["patch_masks"].tolist(),
                    text_keys=net_input.get("text_keys"),
                )
        self.progress.in_batch = False
        if "references" in sample:
            target = self.references.target(sample["references"], self.progress.has_ended)
            sample["target"] = target
        if self.progress.has_ended:
            self.end_generation()
        return hyps

    def prompt(self, source: Tensor) -> Tensor:
        """Return what the decoder is fed before the answer to ``source``, Long [P], bos first."""
        return source_prompt(source, getattr(self.cfg, "prompt_type", "none"))

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> Hyps:
        """Return the hypotheses of a batch. Does not change ``sample``."""
        net_input = dict(sample["net_input"])
        limits = self.step_limits(generator, sample)
        if limits is not None:
            net_input["step_limit"] = limits
        # fairseq-generate --fp16 converts the models but not the batches.
        dtype = next(iter(models[0].parameters())).dtype
        net_input["patch_images"] = net_input["patch_images"].to(dtype)
        with torch.no_grad():
            return generator.generate(
                models,
                {**sample, "net_input": net_input},
                bos_token=self.dictionary.bos(),
                **forced,
            )

    def step_limits(self, generator: Any, sample: dict[str, Any]) -> Optional[Tensor]:
        """Return the largest number of decoder steps, Long [B]; None if none are generated."""
        raise NotImplementedError

    def traces(self, generator: Any, models: Sequence[Any]) -> list[Optional[ExitTrace]]:
        """Return the trace of each model's last batch."""
        if isinstance(generator, CandidateScorer):
            return generator.traces()
        return [model.last_trace for model in models]

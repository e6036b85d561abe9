"""Base of all tasks: models with exits, training, generation with reports, validation."""

import atexit
import logging
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, ClassVar, Optional

import torch
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from fairseq.logging import metrics
from fairseq.tasks import TASK_REGISTRY
from torch import Tensor

from ofa_exit.data.example import source_prompt
from ofa_exit.data.text import TextEncoder, load_codec
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.plugin.average import check_average_of_training, reject_missing_averages
from ofa_exit.plugin.calibrated import reject_foreign_config
from ofa_exit.plugin.command_options import (
    add_official_options,
    check_command,
    reject_interactive,
    take_overrides,
)
from ofa_exit.plugin.drafts import build_drafting, reject_exits_of_loss, reject_lossless_scoring
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.options import add_late_options, build_exit_policy, flag, reject_misfit
from ofa_exit.plugin.reporting import log_heads, log_rows, print_reports, run_record
from ofa_exit.plugin.saved_arguments import (
    command_of,
    reference_layers,
    reject_misfit_of_checkpoints,
    reject_misfit_of_model,
    resolved,
    saved_checkpoints,
)
from ofa_exit.plugin.search.candidates import CandidateScorer
from ofa_exit.plugin.search.options import UNSUPPORTED, check_numbers, reject_options
from ofa_exit.plugin.tasks.config import GENERATION_ONLY, OFATaskConfig
from ofa_exit.plugin.tasks.data import DataTask
from ofa_exit.plugin.tasks.files import first_folder
from ofa_exit.plugin.tasks.metrics import check_best_metric
from ofa_exit.plugin.tasks.references import ShownReferences, reject_without_references
from ofa_exit.plugin.tasks.samples import complete_sample
from ofa_exit.plugin.trained_options import reject_other_vocabulary, take_trained_options
from ofa_exit.plugin.vocabulary import OFADictionary
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.runtime.trace import ExitTrace

logger = logging.getLogger(__name__)

Hyps = list[list[dict[str, Tensor]]]
"""For each sentence its hypotheses, the best first, in fairseq's form."""


class OFATask(DataTask):
    """Base of the tasks, which add examples, a generator and validation metrics.

    After ``build_generator``, ``exit_reports`` holds one report per model on all that
    ``inference_step`` generates. They are printed after the last batch.

    A criterion may have two methods that are called here. ``prepare_training(model)`` says what is
    trained, before the optimizer is built; by default everything is.
    ``optimizer_step(optimizer, update_num)`` replaces the plain step.
    """

    exit_defaults: ClassVar[str]
    """Kind of task whose defaults of exit policies hold: caption or answer."""
    eval_options: tuple[str, ...]
    """Options that add generation to validation."""
    validation_metrics: ClassVar[dict[str, str]] = {}
    """What generation in validation logs, name → option. ``acc`` is the accuracy of every task."""

    def __init__(
        self,
        cfg: OFATaskConfig,
        policy: Optional[ExitPolicy],
        dictionary: OFADictionary,
        encoder: TextEncoder,
    ) -> None:
        super().__init__(cfg, dictionary, encoder)
        self.exit_policy = policy
        self.model_to_train: Any = None
        self.exit_reports: list[GenerationReport] = []
        self.references = ShownReferences(dictionary, encoder.codec)
        self.run_record: dict[str, Any] = {}
        self.eval_generator: Any = None
        self.average_generator: Any = None  # of the moving average of the weights

    @property
    def uses_ema(self) -> bool:
        """Return whether fairseq passes the moving average of the weights to each step."""
        return getattr(self.cfg, "uses_ema", False)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the options of the task, and those of every registered exit policy."""
        super().add_args(parser)
        add_late_options(parser)
        reject_interactive(parser)
        add_official_options(parser)

    @classmethod
    @usage_errors()
    def setup_task(cls, cfg: Any, from_checkpoint: bool = False, **kwargs: Any) -> "OFATask":
        """Check all options, then read the dictionary.

        Args:
            from_checkpoint: ``cfg`` comes from a checkpoint that has been loaded already.
        """
        take_overrides(cfg)
        policy = build_exit_policy(cfg, cls.exit_defaults)
        reference_layers(cfg)  # rejects what is none
        checkpoints = [] if from_checkpoint else saved_checkpoints(cfg)
        reject_misfit_of_checkpoints(cfg, policy, checkpoints)
        take_trained_options(cfg, cls.prefix, checkpoints)
        reject_foreign_config(cfg, cls.prefix)
        cls.check_options(cfg)
        reject_lossless_scoring(cfg, cls.searches(cfg))
        command = command_of(cfg)
        if command is not None:
            check_command(command)
            cls.check_generation(cfg, command.generation)
        if not from_checkpoint:
            reject_missing_averages(cfg)
        folder = cfg.bpe_dir or first_folder(cfg.data)
        dictionary = OFADictionary.of_folder(folder, cfg.code_dict_size, cfg.num_bins)
        reject_other_vocabulary(cfg, dictionary, folder, checkpoints)
        logger.info("dictionary of %s: %d symbols", folder, len(dictionary))
        encoder = TextEncoder(load_codec(folder, get_encoder), dictionary)
        return cls(cfg, policy, dictionary, encoder)

    @classmethod
    def check_generation(cls, cfg: OFATaskConfig, args: Any) -> None:
        """Raise ValueError for values of fairseq's generation options that are never possible."""
        check_numbers(args)

    # ------------------------------------------------------------------ models and training

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model without weights, and reject exit options that it cannot follow."""
        if from_checkpoint:  # its weights are in the checkpoint
            cfg.resnet_model_path = None
        with usage_errors():
            reject_misfit_of_model(self.cfg, cfg)
            model = super().build_model(cfg, from_checkpoint)
        reject_misfit(self.cfg, self.exit_policy, model)
        log_heads(model)
        model.grows_vocabulary = not from_checkpoint
        if not from_checkpoint:
            self.model_to_train = model
        if self.validates_generation():
            self.eval_generator = self.validation_generator(model)
        return model

    @usage_errors()
    def build_criterion(self, *args: Any, **kwargs: Any) -> Any:
        """Build the criterion and let it prepare the model that is going to be trained.

        Training and validation have a criterion, generation has none: reject its options here.
        """
        if self.model_to_train is not None:
            check_average_of_training(self.cfg, self.eval_options)
        for option, made in GENERATION_ONLY.items():
            if value := getattr(self.cfg, option, None):
                raise ValueError(
                    f"{flag(option)} {value!r}: only fairseq-generate {made}; "
                    "leave it out of training and validation"
                )
        if not self.validates_generation():
            reject_exits_of_loss(self.cfg, self.exit_policy, self.eval_options)
        metric = resolved(getattr(self.cfg, "best_checkpoint_metric", None))
        if self.model_to_train is not None and metric is not None:
            tasks = (cls for cls in TASK_REGISTRY.values() if issubclass(cls, OFATask))
            check_best_metric(
                metric,
                self.cfg.maximize_best_checkpoint_metric,
                self.validation_metrics,
                {metric for task in tasks for metric in task.validation_metrics},
                self.cfg,
            )
        self.criterion = super().build_criterion(*args, **kwargs)
        if self.model_to_train is not None and hasattr(self.criterion, "prepare_training"):
            self.criterion.prepare_training(self.model_to_train)
        return self.criterion

    def train_step(self, *args: Any, ema_model: Any = None, **kwargs: Any) -> Any:
        """Take a step of training, which does not use the average that fairseq passes."""
        return super().train_step(*args, **kwargs)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        if hasattr(self.criterion, "optimizer_step"):
            self.criterion.optimizer_step(optimizer, update_num)
        else:
            super().optimizer_step(optimizer, model, update_num)

    def set_exits(self, models: Sequence[Any], on: bool) -> None:
        """Set the models' exit policy, or remove it."""
        for model in models:
            drafting = build_drafting(self.cfg, len(model.decoder.layers))
            options = self.exit_policy, self.cfg.exit_kv or "propagate", False, drafting
            model.configure_exits(*options if on else (None,))

    # ------------------------------------------------------------------ generation

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

    # ------------------------------------------------------------------ validation

    def validates_generation(self) -> bool:
        """Return whether validation also generates."""
        return any(getattr(self.cfg, option) for option in self.eval_options)

    def validation_generator(self, model: Any) -> Any:
        """Return the generator of validation."""
        return self.make_generator([model], Namespace())

    def validation_sums(self, sample: dict[str, Any], texts: list[str]) -> dict[str, float]:
        """Return what a batch's best hypotheses add to the metrics, summed over workers later."""
        raise NotImplementedError

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Log which rows read so far were skipped."""
        super().begin_valid_epoch(epoch, model)
        for dataset in self.datasets.values():
            log_rows(dataset.rows)

    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any, ema_model: Any = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return the loss at full depth, and metrics of generation, with exits if they are set.

        Args:
            ema_model: generates instead of ``model``, with ``--uses-ema``.
        """
        if not sample:  # every row of the batch was skipped
            return 0.0, 0, {"loss": 0.0, "sample_size": 0, "ntokens": 0, "nsentences": 0}
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        generator = self.eval_generator
        if generator is not None and ema_model is not None:
            if self.average_generator is None:
                self.average_generator = self.validation_generator(ema_model.eval())
            generator = self.average_generator
        if generator is not None:
            # The models inside the generator: ``model`` may be a data-parallel wrapper.
            models = list(getattr(generator, "model", generator).models)
            self.set_exits(models, on=True)
            try:
                hyps = self.generate(generator, models, sample)
            finally:
                self.set_exits(models, on=False)
            best = [self.text(sentence_hyps[0]["tokens"]) for sentence_hyps in hyps]
            logging_output.update(self.validation_sums(sample, best))
        if sample.get("is_skipped"):
            # The same keys as of other processes, whose sums are added to these.
            logging_output = {
                key: torch.zeros_like(value) if torch.is_tensor(value) else 0
                for key, value in logging_output.items()
            }
            return loss, 0, logging_output
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        if sum(output.get("sample_size", 0) for output in logging_outputs):
            super().reduce_metrics(logging_outputs, criterion)
        else:
            # A batch of skipped rows. Without a loss of weight 0 the trainer logs one of -1.
            metrics.log_scalar("loss", 0.0, 0, round=3)
        if self.reads_checkpoint and self.progress.iterator is not None:
            # fairseq-validate calls this once per split, at its end.
            log_rows(self.progress.iterator.dataset.rows)

"""Base of all tasks: options, models with exits, training and validation."""

import logging
from argparse import Namespace
from typing import Any, ClassVar, Optional

import torch
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from fairseq.logging import metrics
from fairseq.tasks import TASK_REGISTRY

from ofa_exit.data.text import TextEncoder, load_codec
from ofa_exit.plugin.average import check_average_of_training, reject_missing_averages
from ofa_exit.plugin.calibrated import reject_foreign_config
from ofa_exit.plugin.command_options import (
    add_official_options,
    check_command,
    check_precision,
    reject_interactive,
    take_overrides,
)
from ofa_exit.plugin.drafts import reject_lossless_scoring
from ofa_exit.plugin.errors import usage_errors
from ofa_exit.plugin.exits_given import reject_exits_of_loss
from ofa_exit.plugin.options import add_late_options, build_exit_policy, reject_misfit
from ofa_exit.plugin.reporting import log_heads, log_rows
from ofa_exit.plugin.saved_arguments import (
    command_of,
    reference_layers,
    reject_misfit_of_checkpoints,
    reject_misfit_of_model,
    reject_unknown_model,
    resolved,
    saved_checkpoints,
)
from ofa_exit.plugin.search.candidates import REJECTED
from ofa_exit.plugin.search.options import (
    UNSUPPORTED,
    check_numbers,
    check_vocabulary,
    reject_options,
)
from ofa_exit.plugin.tasks.config import GENERATION_ONLY, OFATaskConfig
from ofa_exit.plugin.tasks.data import RANGES
from ofa_exit.plugin.tasks.files import first_folder, reject_no_data
from ofa_exit.plugin.tasks.generation import GenerationTask
from ofa_exit.plugin.tasks.metrics import check_best_metric
from ofa_exit.plugin.trained_options import reject_other_vocabulary, take_trained_options
from ofa_exit.plugin.vocabulary import OFADictionary
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.ranges import check_ranges
from ofa_exit.spelling import flag

logger = logging.getLogger(__name__)


class OFATask(GenerationTask):
    """Base of the tasks, which add examples, a generator and validation metrics.

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
        super().__init__(cfg, policy, dictionary, encoder)
        self.model_to_train: Any = None
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
        check_ranges(cfg, RANGES)  # what is given, before it is compared with a checkpoint's
        policy = build_exit_policy(cfg, cls.exit_defaults)
        reference_layers(cfg)  # rejects what is none
        checkpoints = [] if from_checkpoint else saved_checkpoints(cfg)
        reject_misfit_of_checkpoints(cfg, policy, checkpoints)
        take_trained_options(cfg, cls.prefix, checkpoints)
        reject_foreign_config(cfg, cls.prefix, policy=policy)
        if not from_checkpoint:  # notebooks make their own samples
            reject_no_data(cfg.data)
        cls.check_options(cfg)
        reject_lossless_scoring(cfg, cls.searches(cfg))
        command = command_of(cfg)
        if command is not None:
            check_command(command)
            if not resolved(cfg.path) and not from_checkpoint:
                check_precision(command.common)
            cls.check_generation(cfg, command.generation)
        reject_missing_averages(cfg, checkpoints)
        folder = cfg.bpe_dir or first_folder(cfg.data)
        dictionary = OFADictionary.of_folder(folder, cfg.code_dict_size, cfg.num_bins)
        reject_other_vocabulary(cfg, dictionary, folder, checkpoints)
        if command is not None and cls.searches(cfg):
            check_vocabulary(command.generation, len(dictionary))
        logger.info("dictionary of %s: %d symbols", folder, len(dictionary))
        encoder = TextEncoder(load_codec(folder, get_encoder), dictionary)
        return cls(cfg, policy, dictionary, encoder)

    @classmethod
    def check_generation(cls, cfg: OFATaskConfig, args: Any) -> None:
        """Raise ValueError for values of fairseq's generation options that are never possible."""
        check_numbers(args)
        if resolved(cfg.path):
            reject_options(args, UNSUPPORTED if cls.searches(cfg) else {**UNSUPPORTED, **REJECTED})

    # ------------------------------------------------------------------ models and training

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model without weights, and reject exit options that it cannot follow."""
        if from_checkpoint:  # its weights are in the checkpoint
            cfg.resnet_model_path = None
        with usage_errors():
            reject_unknown_model(cfg)
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

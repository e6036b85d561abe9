"""What captioning and entailment have in common: data, generation with exits, the report."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Optional

import torch
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.text import TextEncoder, load_codec
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.models.compiling import compile_parts
from ofa_exit.plugin.criterions.groups import step_groups
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.options import exit_policy, flag, refuse_misfit
from ofa_exit.plugin.run_record import run_record
from ofa_exit.plugin.saved_arguments import refuse_misfit_of_checkpoints
from ofa_exit.plugin.search.generation import (
    UNSUPPORTED,
    Pass,
    at_end_of,
    forget_failed_lookups,
    log_rows,
    print_reports,
    refuse_options,
)
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.dataset import RowDataset
from ofa_exit.plugin.tasks.files import first_folder, is_training, split_files
from ofa_exit.plugin.tasks.validation import ValidatesByGenerating
from ofa_exit.plugin.vocabulary import OFADictionary, PrintingCodec
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.runtime.trace import ExitTrace

logger = logging.getLogger(__name__)


class OFATask(ValidatesByGenerating):
    """Base of the tasks; they add examples, generator and validation metrics.

    After ``build_generator`` the layers, savings and times of all that ``inference_step``
    generates are in ``exit_reports``, one a model; they are printed at the end.
    """

    prefix: str
    """What the official files of the task are called by: PREFIX_train.tsv."""
    same_as_trained: tuple[str, ...] = ("patch_image_size", "imagenet_default_mean_and_std")
    """Options that a checkpoint must have been trained with."""
    similarity_defaults: ClassVar[dict[str, Any]]
    """The paper's decoder threshold and schedule for the task (appendix)."""

    cfg: OFATaskConfig

    def __init__(
        self,
        cfg: OFATaskConfig,
        policy: Optional[ExitPolicy],
        dictionary: OFADictionary,
        encoder: TextEncoder,
    ) -> None:
        super().__init__(cfg)
        self.exit_policy = policy
        self.dictionary = dictionary
        self.encoder = encoder
        self.done = Pass()
        self.exit_reports: list[GenerationReport] = []
        self.eval_generator: Any = None
        self.get_groups_for_update: Optional[Callable[[int], set[str]]] = None

    @classmethod
    @usage_errors()
    def setup_task(
        cls, cfg: OFATaskConfig, from_checkpoint: bool = False, **kwargs: Any
    ) -> "OFATask":
        """Reads the dictionary; options that make no sense are refused before anything is read.

        from_checkpoint: ``cfg`` comes from a checkpoint, which is read already.
        """
        policy = exit_policy(cfg, cls.similarity_defaults)
        cls.refuse_nonsense(cfg)
        if not from_checkpoint:
            refuse_misfit_of_checkpoints(cfg, policy)
        folder = cfg.bpe_dir or first_folder(cfg.data)
        dictionary = OFADictionary.of_folder(folder, cfg.code_dict_size, cfg.num_bins)
        logger.info("dictionary of %s: %d symbols", folder, len(dictionary))
        encoder = TextEncoder(load_codec(folder, get_encoder), dictionary)
        return cls(cfg, policy, dictionary, encoder)

    @classmethod
    def refuse_nonsense(cls, cfg: OFATaskConfig) -> None:
        """Raises ValueError for options that are wrong whatever the data and the model."""
        if not cfg.data:
            raise ValueError("no data: give TSV files (train.tsv,valid.tsv) or a folder of them")
        for option in ("max_src_length", "max_tgt_length", "patch_image_size"):
            if getattr(cfg, option) < 1:
                raise ValueError(f"{flag(option)} {getattr(cfg, option)}: give at least 1")
        for option in ("code_dict_size", "num_bins"):
            if getattr(cfg, option) < 0:
                raise ValueError(f"{flag(option)} {getattr(cfg, option)}: give 0 or more")

    # ------------------------------------------------------------------ data

    def examples(self, path: Any, split: str, load_image: ImageLoader) -> RowExamples:
        """The rows of a file of ``split`` as examples of this task."""
        raise NotImplementedError

    def has_sharded_data(self, split: str) -> bool:
        return is_training(split) and len(split_files(self.cfg.data, split, self.prefix)) > 1

    def load_dataset(
        self,
        split: str,
        epoch: int = 1,
        combine: bool = False,
        task_cfg: Optional[FairseqDataclass] = None,
        **kwargs: Any,
    ) -> None:
        """Opens the file of ``split``.

        ``task_cfg``: the checkpoint's, from the commands that only read one.
        """
        with usage_errors():
            self._refuse_other_training(task_cfg)
            files = split_files(self.cfg.data, split, self.prefix)
        path = files[(epoch - 1) % len(files)]
        mean_std = "imagenet" if self.cfg.imagenet_default_mean_and_std else "half"
        load_image = ImageLoader(self.cfg.patch_image_size, mean_std)
        rows = OFADataset(
            self.examples(path, split, load_image),
            self.dictionary.pad(),
            self.cfg.patch_image_size,
            self.cfg.skip_bad_rows,
        )
        logger.info("%s: %d rows of %s", split, len(rows), path)
        self.datasets[split] = RowDataset(rows, split, shuffle=is_training(split))
        if task_cfg is not None:
            at_end_of(self.datasets[split], log_rows, rows)

    def _refuse_other_training(self, trained: Any) -> None:
        """Images or questions of another form than in training: low quality, and no other sign."""
        if trained is None or getattr(trained, "_name", None) not in (
            getattr(self.cfg, "_name", None),
            self.prefix,  # the official task of the same files
        ):
            return
        for option in self.same_as_trained:
            here, there = getattr(self.cfg, option), getattr(trained, option, None)
            if there is not None and here != there:
                raise ValueError(
                    f"the checkpoint was trained with {flag(option)} {there}, here it is {here}. "
                    f"Give the same, or, to mean it, --model-overrides \"{{'{option}': {here!r}}}\""
                )

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq-generate has --num-shards and --shard-id but does not look at them."""
        with usage_errors():
            self._take_shard(kwargs)
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        self.done = Pass(iterator)  # of the generator that is built next
        if self.cfg.num_shards > 1 and not self.done.rows:  # training's processes may go without
            raise UsageError(
                f"--shard-id {iterator.shard_id} of {iterator.num_shards} gets none of the "
                f"{len(iterator.frozen_batches)} batches, which are dealt out in turn: give fewer "
                "shards or a smaller --batch-size"
            )
        return iterator

    def _take_shard(self, kwargs: dict[str, Any]) -> None:
        if self.cfg.num_shards > 1:
            if not 0 <= self.cfg.shard_id < self.cfg.num_shards:
                raise ValueError(
                    f"--shard-id {self.cfg.shard_id}: {self.cfg.num_shards} shards are numbered "
                    f"from 0 to {self.cfg.num_shards - 1}"
                )
            if kwargs.get("num_shards", 1) > 1:
                raise ValueError("--num-shards is for generation by single processes")
            kwargs.update(num_shards=self.cfg.num_shards, shard_id=self.cfg.shard_id)

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Says what was wrong with the rows read so far."""
        super().begin_valid_epoch(epoch, model)
        for dataset in self.datasets.values():
            log_rows(dataset.rows)

    # ------------------------------------------------------------------ vocabulary

    @property
    def source_dictionary(self) -> OFADictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> OFADictionary:
        return self.dictionary

    def build_bpe(self, args: Any) -> Any:
        """The codec of the data, so that fairseq-generate prints words."""
        return super().build_bpe(args) or PrintingCodec(self.encoder.codec)

    def text(self, tokens: Tensor) -> str:
        """The words of a hypothesis."""
        return PrintingCodec(self.encoder.codec).decode(self.dictionary.string(tokens))

    # ------------------------------------------------------------------ generation

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Builds the model, without weights yet, and refuses exits that it does not have."""
        with usage_errors():
            model = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint and model.decoder.exits:  # about to be trained
            model.add_feature_classifiers()
        refuse_misfit(self.cfg, self.exit_policy, model)
        if self.validates_generation():
            self.eval_generator = self.validation_generator(model)
        return model

    @usage_errors()
    def build_criterion(self, *args: Any, **kwargs: Any) -> Any:
        """Builds the criterion, which may train one group of parameters at a time.

        Training and validation have one, generation has none: options of generation end here.
        """
        if self.cfg.exit_trace:
            raise ValueError(
                f"--exit-trace {self.cfg.exit_trace!r}: it is fairseq-generate that writes a "
                "trace; leave it out of training and validation"
            )
        if self.exit_policy is not None and not self.validates_generation():
            raise ValueError(
                f"--exit-policy {self.cfg.exit_policy}: the loss is taken at full depth. Add "
                f"{' or '.join(map(flag, self.eval_options))}, so that validation generates, or "
                "leave it out"
            )
        criterion = super().build_criterion(*args, **kwargs)
        self.get_groups_for_update = getattr(criterion, "get_groups_for_update", None)
        return criterion

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Steps the parameter groups whose turn it is."""
        if self.get_groups_for_update is None:
            super().optimizer_step(optimizer, model, update_num)
        else:
            step_groups(optimizer, self.get_groups_for_update(update_num))

    def make_generator(self, models: Sequence[Any], args: Any, **options: Any) -> Any:
        """The generator of the task, for build_generator's arguments."""
        raise NotImplementedError

    def build_generator(
        self,
        models: Sequence[Any],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: Optional[dict[str, Any]] = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """The generator for ``models``, which get their exits, and a new report."""
        refuse_options(args, UNSUPPORTED)
        generator = self.make_generator(
            models,
            args,
            seq_gen_cls=seq_gen_cls,
            extra_gen_cls_kwargs=extra_gen_cls_kwargs,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        )
        if self.cfg.compile:
            for model in models:
                compile_parts(model)
        self.set_exits(models, on=True)
        self.exit_reports = [self._report(*pair) for pair in enumerate(models, start=1)]
        run = {}
        if self.done.shard:
            run = run_record(self, args, models, self.done.iterator.dataset)
        at_end_of(generator, print_reports, self.exit_reports, self.done, run)
        forget_failed_lookups()
        return generator

    @property
    def exit_report(self) -> Optional[GenerationReport]:
        """The first model's report; None before ``build_generator``."""
        return self.exit_reports[0] if self.exit_reports else None

    def set_exits(self, models: Sequence[Any], on: bool) -> None:
        """Gives the models the exit policy, or takes it away."""
        for model in models:
            if on:
                model.configure_exits(self.exit_policy, self.cfg.exit_kv or "propagate")
            else:
                model.configure_exits(None)

    def _report(self, number: int, model: Any) -> GenerationReport:
        trace_file = self.cfg.exit_trace
        if trace_file and number > 1:
            trace_file += f".{number}"
        kv, symbol = self.cfg.exit_kv or "propagate", self.dictionary.__getitem__
        return GenerationReport.for_model(model, kv, trace_file, symbol, self.scored_words())

    def scored_words(self) -> Optional[int]:
        """Words that generation scores at a time; None where it is the whole vocabulary."""
        return None

    def inference_step(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> list[list[dict[str, Tensor]]]:
        """Generates for a batch and takes it into the reports.

        forced: ``prefix_tokens`` and ``constraints``, as fairseq names them.

        Afterwards ``sample["target"]`` holds all references of each sentence, joined by ``&&``, in
        their own words: fairseq-generate prints it and hands it to the scorer.
        """
        self.done.in_batch = True
        start = time.perf_counter()
        hypotheses = self.generate(generator, models, sample, **forced)
        # To lists within the time taken: what the device still computes is waited for.
        tokens = [[hypo["tokens"].tolist() for hypo in of] for of in hypotheses]
        seconds = time.perf_counter() - start
        net_input = sample["net_input"]
        height, width = net_input["patch_images"].shape[-2:]
        for report, trace in zip(self.exit_reports, self.traces(generator, models)):
            report.add(
                ids=sample["uniq_ids"],
                trace=trace,
                hypotheses=tokens,
                text_tokens=net_input["src_lengths"].tolist(),
                image_size=(height, width),
                seconds=seconds,
                pictures=net_input["patch_masks"].tolist(),
            )
        shown = [
            self.dictionary.shown_references(self.encoder.codec, references)
            for references in sample["references"]
        ]
        sample["target"] = torch.nn.utils.rnn.pad_sequence(
            shown, batch_first=True, padding_value=self.dictionary.pad()
        )
        self.done.in_batch = False
        return hypotheses

    def generate(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: dict[str, Any],
        **forced: Optional[Tensor],
    ) -> list[list[dict[str, Tensor]]]:
        """Hypotheses of a batch by ``generator``; the sample stays as it is."""
        net_input = dict(sample["net_input"])
        limits = self.step_limits(generator, sample)
        if limits is not None:
            net_input["step_limit"] = limits
        # fairseq-generate --fp16 converts the models and not the batches.
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
        """Steps that the generation may take, Long [B]; None where words are not generated."""
        raise NotImplementedError

    def traces(self, generator: Any, models: Sequence[Any]) -> list[Optional[ExitTrace]]:
        """Layers executed for the last batch, one trace a model."""
        return [model.last_trace for model in models]

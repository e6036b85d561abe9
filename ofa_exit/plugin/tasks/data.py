"""The part of a task that reads data: files, rows, batches and the vocabulary."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask
from torch import Tensor

from ofa_exit.data.augment import Augmentation, augmentation_kinds
from ofa_exit.data.dataset import OFADataset
from ofa_exit.data.example import PROMPT_TYPES
from ofa_exit.data.image_groups import image_groups
from ofa_exit.data.images import ImageLoader
from ofa_exit.data.row_examples import RowExamples
from ofa_exit.data.text import TextCodec, TextEncoder, check_prompt_words
from ofa_exit.plugin.calibrated import fingerprint_of_task, warn_of_data
from ofa_exit.plugin.errors import UsageError, usage_errors
from ofa_exit.plugin.reporting import Progress
from ofa_exit.plugin.tasks.config import OFATaskConfig
from ofa_exit.plugin.tasks.dataset import RowDataset
from ofa_exit.plugin.tasks.files import is_training, split_files
from ofa_exit.plugin.trained_options import reject_other_training
from ofa_exit.plugin.trained_words import STATE, reject_other_fingerprint
from ofa_exit.plugin.vocabulary import OFADictionary, PrintingCodec
from ofa_exit.ranges import check_ranges, whole

logger = logging.getLogger(__name__)

RANGES = {
    **dict.fromkeys(("max_src_length", "max_tgt_length"), whole(1, 100_000)),
    "max_image_pixels": whole(1),
    "patch_image_size": whole(16, 100_000),  # a cell has 16 pixels
    **dict.fromkeys(("code_dict_size", "num_bins"), whole(0, 1_000_000)),  # OFA: 8,192 and 1,000
}


class DataTask(FairseqTask):
    """Base of ``OFATask``: reads TSV files, and splits them into shards of batches."""

    prefix: str
    """Official files of the task are called PREFIX_train.tsv."""
    row_examples: type[RowExamples]

    cfg: Any
    """OFATaskConfig, in which setup_task has set every option."""

    def __init__(self, cfg: OFATaskConfig, dictionary: OFADictionary, encoder: TextEncoder) -> None:
        super().__init__(cfg)
        with usage_errors():
            check_prompt_words(encoder, self.row_examples.prompt_texts(cfg))
        self.dictionary = dictionary
        self.encoder = encoder
        self.criterion: Any = None  # training and validation have one, generation has none
        self.progress = Progress()
        self.reads_checkpoint = False  # generation or validation, not training

    @classmethod
    def check_options(cls, cfg: OFATaskConfig) -> None:
        """Raise ValueError for options that are invalid for any data and model."""
        check_ranges(cfg, RANGES)
        if kinds := getattr(cfg, "augment", None):
            augmentation_kinds(kinds)
        prompt = getattr(cfg, "prompt_type", "none")
        if prompt not in PROMPT_TYPES:
            raise ValueError(f"--prompt-type {prompt!r}: choose from {', '.join(PROMPT_TYPES)}")

    @classmethod
    def searches(cls, cfg: OFATaskConfig) -> bool:
        """Return whether words are searched. Otherwise given answers are scored."""
        return False

    def examples(
        self, path: Any, split: str, load_image: ImageLoader, **options: Any
    ) -> RowExamples:
        """Return the rows of a file of ``split`` as examples; ``options`` are further arguments."""
        return self.row_examples(
            path,
            self.encoder,
            load_image,
            train=is_training(split),
            selected_cols=self.cfg.selected_cols,
            max_src_length=self.cfg.max_src_length,
            max_tgt_length=self.cfg.max_tgt_length,
            references_optional=self.criterion is None and not is_training(split),
            **options,
        )

    def has_sharded_data(self, split: str) -> bool:
        return is_training(split) and len(split_files(self.cfg.data, split, self.prefix)) > 1

    @usage_errors()
    def load_dataset(
        self,
        split: str,
        epoch: int = 1,
        combine: bool = False,
        task_cfg: Optional[FairseqDataclass] = None,
        **kwargs: Any,
    ) -> None:
        """Open the file of ``split``; of several training files, the one of ``epoch``.

        Args:
            task_cfg: the checkpoint's, in fairseq-generate and fairseq-validate.
        """
        self.reads_checkpoint = task_cfg is not None
        if task_cfg is not None:
            reject_other_training(self.cfg, self.prefix, task_cfg)
        files = split_files(self.cfg.data, split, self.prefix)
        path = files[(epoch - 1) % len(files)]
        self._reject_double(split, path)
        mean_std = "imagenet" if self.cfg.imagenet_default_mean_and_std else "half"
        load_image = ImageLoader(self.cfg.patch_image_size, mean_std, self.cfg.max_image_pixels)
        options: dict[str, Any] = {}
        augment = getattr(self.cfg, "augment", None)
        if augment and is_training(split) and not self.reads_checkpoint:
            options["augment"] = Augmentation(augmentation_kinds(augment), self.cfg.seed)
        examples = self.examples(path, split, load_image, **options)
        if getattr(self.cfg, "group_images", False) and is_training(split):
            examples.groups = image_groups(examples.file)
            logger.info("%s: %d images", split, int(examples.groups[-1]) + 1)
        rows = OFADataset(
            examples,
            self.dictionary.pad(),
            self.cfg.patch_image_size,
            self.cfg.skip_bad_rows,
        )
        logger.info("%s: %d rows of %s", split, len(rows), path)
        if self.reads_checkpoint:
            warn_of_data(self.cfg, path)
        validates = self.criterion is not None and not is_training(split)
        self.datasets[split] = RowDataset(rows, split, is_training(split), validates)
        self.datasets[split].set_epoch(epoch)

    def _reject_double(self, split: str, path: Path) -> None:
        # Equal scores under two names would look like two measurements.
        for other, dataset in self.datasets.items():
            held_out = not is_training(split) and not is_training(other)
            if held_out and other != split and dataset.rows.examples.file.path == path:
                raise ValueError(
                    f"the splits {other!r} and {split!r} are both read from {path}: give "
                    "train.tsv,valid.tsv,test.tsv, a folder of all splits, or one split"
                )

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides what a model reads and may answer, as JSON."""
        return fingerprint_of_task(self.cfg, self.prefix)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator, over one shard with --num-shards and --shard-id.

        fairseq-generate has both options but ignores them.
        """
        shards, shard = self.cfg.num_shards, self.cfg.shard_id
        if shards > 1:
            if not 0 <= shard < shards:
                raise UsageError(f"--shard-id {shard}: give 0 to {shards - 1} of {shards} shards")
            if kwargs.get("num_shards", 1) > 1:
                raise UsageError("--num-shards needs generation by a single process")
            kwargs.update(num_shards=shards, shard_id=shard)
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        self.progress = Progress(iterator)
        if self.reads_checkpoint:
            dataset.rows.rows_to_read = self.progress.rows
        if shards > 1 and not self.progress.rows:
            raise UsageError(
                f"--shard-id {shard} of {shards} gets none of the {len(iterator.frozen_batches)} "
                "batches: give fewer shards or a smaller --batch-size"
            )
        return iterator

    # ------------------------------------------------------------------ vocabulary

    def state_dict(self) -> dict[str, Any]:
        """Return what fairseq saves of the task in checkpoints: the dictionary's fingerprint."""
        return {**super().state_dict(), STATE: self.dictionary.fingerprint()}

    @usage_errors()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the dictionary with that of the checkpoint's training."""
        state = dict(state_dict)
        if STATE in state:
            reject_other_fingerprint(self.dictionary, state.pop(STATE))
        super().load_state_dict(state)

    @property
    def source_dictionary(self) -> OFADictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> OFADictionary:
        return self.dictionary

    # Names that code written for OFA's tasks uses.

    @property
    def src_dict(self) -> OFADictionary:
        return self.dictionary

    @property
    def tgt_dict(self) -> OFADictionary:
        return self.dictionary

    @property
    def bpe(self) -> TextCodec:
        return self.encoder.codec

    def build_bpe(self, args: Any) -> Any:
        """Return the data's codec, with which fairseq-generate prints words."""
        return super().build_bpe(args) or PrintingCodec(self.encoder.codec)

    def text(self, tokens: Tensor) -> str:
        """Return the words of a hypothesis."""
        return PrintingCodec(self.encoder.codec).decode(self.dictionary.string(tokens))

    def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """Return what each token of a hypothesis adds to its text; the end adds nothing."""
        pieces, shown = [], ""
        for end in range(1, len(tokens) + 1):
            text = self.text(torch.tensor(tokens[:end]))
            pieces.append(text[len(shown) :])
            shown = text
        return pieces

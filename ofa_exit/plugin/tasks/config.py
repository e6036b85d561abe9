"""Options of all tasks."""

from dataclasses import dataclass, field
from typing import Optional

from omegaconf import II

from ofa_exit.data.formats import MAX_PIXELS
from ofa_exit.plugin.options import ExitFlags
from ofa_exit.plugin.trained_options import trained_option

GENERATION_ONLY = {
    "exit_trace": "writes a trace",
    "exit_config": "applies one",
    "reference_layers": "reports",
}
"""Options that training and validation reject, and what only fairseq-generate does with them."""


@dataclass
class OFATaskConfig(ExitFlags):
    """Options of all tasks. Those that OFA has keep OFA's name and meaning."""

    data: Optional[str] = field(
        default=None,
        metadata={
            "help": "TSV files separated by commas (train.tsv,valid.tsv: the last one for "
            "validation and generation, the others for training, one per epoch; or "
            "train.tsv,valid.tsv,test.tsv), a single file to generate from, or a folder of "
            "train.tsv, valid.tsv, test.tsv, …"
        },
    )
    selected_cols: Optional[str] = field(
        default=None, metadata={"help": "numbers of the columns to read (default: OFA's)"}
    )
    bpe_dir: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder of dict.txt and of GPT-2's encoder.json and vocab.bpe, or of a "
            "sentencepiece *.model; without either, text is split into words (default: the data's "
            "folder)"
        },
    )
    max_src_length: Optional[int] = trained_option(80, "longest source text, in words")
    max_tgt_length: int = field(default=20, metadata={"help": "longest training target, in words"})
    patch_image_size: Optional[int] = trained_option(
        480, "side of the resized images, in pixels", any_task=True
    )
    imagenet_default_mean_and_std: Optional[bool] = trained_option(
        False, "normalise images by ImageNet's mean and std, not by 0.5", any_task=True
    )
    augment: Optional[str] = field(
        default=None,
        metadata={
            "help": "random views of training images, separated by commas: flips (mirrored from "
            "left to right), rotations (by 90, 180 or 270 degrees). Texts are not changed "
            "(default: none)"
        },
    )
    group_images: bool = field(
        default=False,
        metadata={
            "help": "keep training rows that follow each other and have the same image together in "
            "a batch, which then encodes the image once, in one random view"
        },
    )
    max_image_pixels: int = field(
        default=MAX_PIXELS, metadata={"help": "largest image to read, width times height"}
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "skip and count rows that cannot be used, instead of failing; training reads "
            "other rows of the file in their place"
        },
    )
    code_dict_size: Optional[int] = trained_option(
        8192, "image codes in the vocabulary", any_task=True
    )
    num_bins: Optional[int] = trained_option(1000, "position bins in the vocabulary", any_task=True)
    reference_layers: Optional[str] = field(
        default=None,
        metadata={
            "help": "ENCODER,DECODER: layers of the model that the expected time reduction (MuE "
            "Eq. 14) of the report compares with, 6,6 for OFA base (default: the model's own)"
        },
    )
    uses_ema: bool = field(
        default=False,
        metadata={
            "help": "generate in validation with the moving average of the weights, which "
            "--store-ema keeps; the loss stays that of the weights"
        },
    )
    ema_eval: bool = field(
        default=False,
        metadata={
            "help": "generate, or validate a checkpoint, with the moving average of the weights "
            "that the checkpoint holds (trained with --store-ema)"
        },
    )
    # Options of fairseq's commands. Without a help text the task adds no flag for them.
    seed: int = II("common.seed")
    store_ema: bool = II("ema.store_ema")
    num_shards: int = II("dataset.num_shards")
    shard_id: int = II("dataset.shard_id")
    path: Optional[str] = II("common_eval.path")
    model_overrides: str = II("common_eval.model_overrides")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")

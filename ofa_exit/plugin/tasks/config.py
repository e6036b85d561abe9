"""Options of all tasks."""

from dataclasses import dataclass, field
from typing import Optional

from omegaconf import II

from ofa_exit.plugin.options import ExitFlags


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
    max_src_length: int = field(default=80, metadata={"help": "longest source text, in words"})
    max_tgt_length: int = field(default=20, metadata={"help": "longest training target, in words"})
    patch_image_size: int = field(
        default=480, metadata={"help": "side of the resized images, in pixels"}
    )
    imagenet_default_mean_and_std: bool = field(
        default=False, metadata={"help": "normalise images by ImageNet's mean and std, not by 0.5"}
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={
            "help": "skip and count rows that cannot be used, instead of failing; training reads "
            "other rows of the file in their place"
        },
    )
    code_dict_size: int = field(
        default=8192, metadata={"help": "image codes in the vocabulary; OFA's checkpoints: 8192"}
    )
    num_bins: int = field(
        default=1000, metadata={"help": "position bins in the vocabulary; OFA's checkpoints: 1000"}
    )
    reference_layers: Optional[str] = field(
        default=None,
        metadata={
            "help": "ENCODER,DECODER: layers of the model that the expected time reduction (MuE "
            "Eq. 14) of the report compares with, 6,6 for OFA base (default: the model's own)"
        },
    )
    # Options of fairseq's commands. Without a help text the task adds no flag for them.
    num_shards: int = II("dataset.num_shards")
    shard_id: int = II("dataset.shard_id")
    path: Optional[str] = II("common_eval.path")
    model_overrides: str = II("common_eval.model_overrides")

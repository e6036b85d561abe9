"""The options of every task."""

from dataclasses import dataclass, field
from typing import Optional

from omegaconf import II

from ofa_exit.plugin.options import ExitFlags


@dataclass
class OFATaskConfig(ExitFlags):
    """Options of every task; names and meanings are OFA's where OFA has them."""

    data: Optional[str] = field(
        default=None,
        metadata={
            "help": "TSV files separated by commas (train.tsv,valid.tsv: the last one for "
            "validation and generation, those before it for training, one an epoch), one file to "
            "generate from, or a folder that holds train.tsv, valid.tsv, test.tsv, …"
        },
    )
    selected_cols: Optional[str] = field(
        default=None,
        metadata={"help": "numbers of the columns to read (default: those of OFA's files)"},
    )
    bpe_dir: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder of dict.txt and, unless text is split into words, of GPT-2's "
            "encoder.json and vocab.bpe or a sentencepiece *.model (default: the data's folder)"
        },
    )
    max_src_length: int = field(default=80, metadata={"help": "words of a text that are read"})
    max_tgt_length: int = field(default=20, metadata={"help": "words of a caption in training"})
    patch_image_size: int = field(
        default=480, metadata={"help": "side in pixels that images are resized to"}
    )
    imagenet_default_mean_and_std: bool = field(
        default=False,
        metadata={"help": "normalise images by ImageNet's mean and std instead of 0.5"},
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "leave out rows that cannot be used, and count them, instead of failing"},
    )
    code_dict_size: int = field(
        default=8192, metadata={"help": "image codes in the vocabulary; OFA's checkpoints: 8192"}
    )
    num_bins: int = field(
        default=1000, metadata={"help": "position bins in the vocabulary; OFA's checkpoints: 1000"}
    )
    # Options of fairseq's commands, without a help text: none of the task's own.
    compile: bool = field(
        default=False,
        metadata={
            "help": "generate with stem and layers compiled by torch.compile: the first batches "
            "take minutes (needs a C++ compiler on CPU)"
        },
    )
    num_shards: int = II("dataset.num_shards")
    shard_id: int = II("dataset.shard_id")
    path: Optional[str] = II("common_eval.path")
    model_overrides: str = II("common_eval.model_overrides")

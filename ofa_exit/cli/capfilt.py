"""Command line: ``ofa-exit capfilt images|train|recall|filter``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ofa_exit.data.caption import COLUMNS, OFFICIAL_COLS
from ofa_exit.data.images import MEAN_STD
from ofa_exit.data.tsv import TsvFile
from ofa_exit.prepare.capfilt.filtering import filter_captions
from ofa_exit.prepare.capfilt.images import write_images
from ofa_exit.prepare.capfilt.rankers import load_ranker
from ofa_exit.prepare.capfilt.recall import evaluate
from ofa_exit.prepare.capfilt.training import Training, train

DESCRIPTION = """\
Captions for images without labels (CapFilt; BLIPEE Section 3.4): a captioning model samples 10
captions an image, a ranker finds the 2 that fit it best, and these are trained on.

  ofa-exit capfilt images IMAGES.tsv OUT/images.tsv
  fairseq-generate OUT/images.tsv --user-dir user_dir --task mue_caption --path CHECKPOINT \\
    --gen-subset images --sampling --sampling-topp 0.9 --beam 10 --nbest 10 \\
    --results-path OUT --scoring coco_caption --coco-tokenizer plain
  ofa-exit capfilt filter OUT/images.tsv OUT/generate-images.txt \\
    --ranker openai/clip-vit-large-patch14 --out OUT/synthetic.tsv

Where no CLIP can be had, `train` makes a small dual encoder from captions that there are. The
emoji scripts do all of it: run_scripts/emoji/capfilt.sh.
"""
RANKER = (
    "a folder or file of `train`, a folder of save_pretrained with a CLIP, or its name on the hub"
)
_INTERRUPTED = 130
# Options of `train` and what they mean; types and defaults are Training's.
TRAINING = {
    "epochs": "passes over the training file",
    "batch_size": "pairs a batch, each told from all others",
    "lr": "learning rate after the warm-up; falls along a cosine",
    "weight_decay": "of the matrices, by AdamW",
    "warmup": "share of the updates in which the learning rate rises",
    "clip_norm": "largest norm of the gradient",
    "image_size": "side of the pictures, in pixels",
    "seed": "of weights, dropout and the order of the rows",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ofa-exit capfilt",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--selected-cols",
            default=OFFICIAL_COLS,
            help="columns of identifier, image and caption, as for training (default: %(default)s)",
        )
        return command

    def add_id_column(command: Any) -> None:
        command.add_argument(
            "--image-id-column", type=int, default=1,
            help="column, from 0, that says which image a row has (default: %(default)s)",
        )  # fmt: skip

    def add_device(command: Any) -> None:
        command.add_argument(
            "--device", default="cuda" if torch.cuda.is_available() else "cpu",
            help="where to compute (default: cuda where there is one)",
        )  # fmt: skip

    def add_ranker(command: Any) -> None:
        command.add_argument("--ranker", required=True, help=RANKER)
        command.add_argument(
            "--bpe-dir", help="where the vocabulary of a dual encoder lies now, if it was moved"
        )
        command.add_argument(
            "--batch-size", type=int, default=32, help="images at once (default: %(default)s)"
        )
        add_device(command)

    images = add("images", "one row an image, to sample captions for")
    images.add_argument("tsv", type=Path, help="caption TSV, captions may be empty")
    images.add_argument("out", type=Path, help="TSV to write")
    add_id_column(images)

    trained = add("train", "train a small dual encoder on captions; run again it goes on")
    trained.add_argument("train", help="caption TSV, one caption a row")
    trained.add_argument("valid", help="caption TSV of held-out pairs, for recall@1")
    trained.add_argument("out", type=Path, help="folder for checkpoints")
    trained.add_argument("--bpe-dir", required=True, help="folder of dict.txt, as OFA's --bpe-dir")
    trained.add_argument(
        "--init-from", help="OFA checkpoint whose stem and words to start from (default: random)"
    )
    trained.add_argument(
        "--mean-std", choices=list(MEAN_STD), default="half",
        help="how pictures are normalised: as --init-from was trained (default: %(default)s)",
    )  # fmt: skip
    defaults = {option.name: option.default for option in fields(Training)}
    for name, text in TRAINING.items():
        trained.add_argument(
            "--" + name.replace("_", "-"), type=type(defaults[name]), default=defaults[name],
            help=f"{text} (default: %(default)s)",
        )  # fmt: skip
    trained.add_argument(
        "--num-workers", type=int, default=0,
        help="processes that read pictures (default: none but this)",
    )  # fmt: skip
    add_device(trained)

    recall = add("recall", "recall@1 of a ranker on held-out pairs")
    recall.add_argument("tsv", help="caption TSV; several captions of a row joined by &&")
    add_ranker(recall)

    chosen = add("filter", "keep the sampled captions that fit their images best")
    chosen.add_argument("tsv", help="what was generated for")
    chosen.add_argument(
        "generated", nargs="+", help="generate-SPLIT.txt of fairseq-generate --results-path; all "
        "of them where shards or processes shared the work",
    )  # fmt: skip
    chosen.add_argument("--out", type=Path, required=True, help="caption TSV to write")
    chosen.add_argument(
        "--keep", type=int, default=2, help="captions an image (default: %(default)s)"
    )
    chosen.add_argument(
        "--allow-missing", action="store_true", help="leave out rows without samples"
    )
    chosen.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows whose image cannot be read"
    )
    add_id_column(chosen)
    add_ranker(chosen)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = build_parser().parse_args(arguments)
    try:
        run(given)
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return _INTERRUPTED
    return 0


def run(given: argparse.Namespace) -> None:
    """The command that was asked for."""
    if given.command == "images":
        images, rows = write_images(
            given.tsv, given.out, given.selected_cols, given.image_id_column
        )
        print(f"{given.out}: {images} images of {rows} rows")
    elif given.command == "train":
        told = {name: value for name, value in vars(given).items() if name in _OF_TRAINING}
        train(Training(**told), given.out, given.device, given.num_workers)
    elif given.command == "recall":
        ranker = load_ranker(given.ranker, given.device, given.bpe_dir)
        file = TsvFile(given.tsv, given.selected_cols, COLUMNS)
        to_text, to_image, rows = evaluate(ranker, file, given.batch_size)
        print(f"recall@1: image to text {to_text:.4f}, text to image {to_image:.4f} ({rows} rows)")
    else:
        counts = filter_captions(
            load_ranker(given.ranker, given.device, given.bpe_dir),
            given.generated,
            given.tsv,
            given.out,
            keep=given.keep,
            selected_cols=given.selected_cols,
            image_id_column=given.image_id_column,
            allow_missing=given.allow_missing,
            skip_bad_rows=given.skip_bad_rows,
            batch_size=given.batch_size,
            options={"ranker": given.ranker},
        )
        print(f"{given.out}: {counts.text(given.keep)}")


_OF_TRAINING = {option.name for option in fields(Training)}

if __name__ == "__main__":
    sys.exit(main())

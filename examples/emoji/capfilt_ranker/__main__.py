"""Train a small dual encoder on captions, and measure its recall@1."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ofa_exit.data.caption import COLUMNS
from ofa_exit.data.formats import CAPTION_COLS
from ofa_exit.data.images import MEAN_STD
from ofa_exit.data.tsv import TsvFile

from .checkpoint import load_ranker
from .recall import evaluate
from .training import Training, train

INTERRUPTED = 130
# Options of `train` and their meaning; types and defaults are those of Training.
TRAINING_HELP = {
    "epochs": "passes over the training file",
    "batch_size": "pairs per batch; each is contrasted with all others",
    "lr": "learning rate after the warm-up; falls along a cosine",
    "weight_decay": "of the matrices, by AdamW",
    "warmup": "share of the updates in which the learning rate rises",
    "clip_norm": "largest norm of the gradient",
    "image_size": "side of the images, in pixels",
    "seed": "of weights, dropout and the order of the rows",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.emoji.capfilt_ranker", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--selected-cols",
            default=CAPTION_COLS,
            help="columns of identifier, image and caption, as for training (default: %(default)s)",
        )
        command.add_argument(
            "--device", default="cuda" if torch.cuda.is_available() else "cpu",
            help="default: cuda if there is one",
        )  # fmt: skip
        return command

    trained = add("train", "train a dual encoder; the same command resumes a killed run")
    trained.add_argument("train", help="caption TSV, one caption per row")
    trained.add_argument("valid", help="caption TSV of held-out pairs, for recall@1")
    trained.add_argument("out", type=Path, help="folder for checkpoints")
    trained.add_argument("--bpe-dir", required=True, help="folder of dict.txt, as OFA's --bpe-dir")
    trained.add_argument(
        "--init-from", help="OFA checkpoint whose stem and words to start from (default: random)"
    )
    trained.add_argument(
        "--mean-std", choices=list(MEAN_STD), default="half",
        help="normalisation of images, as --init-from was trained with (default: %(default)s)",
    )  # fmt: skip
    defaults = {option.name: option.default for option in fields(Training)}
    for name, text in TRAINING_HELP.items():
        trained.add_argument(
            "--" + name.replace("_", "-"), type=type(defaults[name]), default=defaults[name],
            help=f"{text} (default: %(default)s)",
        )  # fmt: skip
    trained.add_argument(
        "--num-workers", type=int, default=0, help="processes that read images (default: 0)"
    )

    recall = add("recall", "print recall@1 of a dual encoder on held-out pairs")
    recall.add_argument("tsv", help="caption TSV; several captions of a row are joined by &&")
    recall.add_argument("--ranker", required=True, help="folder or file of `train`")
    recall.add_argument("--bpe-dir", help="folder of dict.txt (default: as in training)")
    recall.add_argument(
        "--batch-size", type=int, default=32, help="images per batch (default: %(default)s)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    if args.command == "train":
        names = {option.name for option in fields(Training)}
        options = {name: value for name, value in vars(args).items() if name in names}
        train(Training(**options), args.out, args.device, args.num_workers)
        return
    ranker = load_ranker(args.ranker, args.device, args.bpe_dir)
    file = TsvFile(args.tsv, args.selected_cols, COLUMNS)
    to_text, to_image, rows = evaluate(ranker, file, args.batch_size)
    print(f"recall@1: image to text {to_text:.4f}, text to image {to_image:.4f} ({rows} rows)")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Caption images without labels (CapFilt; BLIPEE Section 3.4).

A captioning model samples 10 captions per image, a ranker selects the 2 that fit it best, and these
are trained on.

  ofa-exit capfilt images IMAGES.tsv OUT/images.tsv
  fairseq-generate OUT/images.tsv --user-dir $(ofa-exit user-dir) --task mue_caption \\
    --path CHECKPOINT --gen-subset images --sampling --sampling-topp 0.9 --beam 10 --nbest 10 \\
    --results-path OUT --scoring coco_caption --coco-tokenizer plain
  ofa-exit capfilt filter OUT/images.tsv OUT/generate-images.txt \\
    --ranker openai/clip-vit-large-patch14 --out OUT/synthetic.tsv

run_scripts/coco/train_blipee.sh with MODE=capfilt does all of it, and trains exits on the captions.
run_scripts/emoji/capfilt.sh makes captions of the emoji data. It ranks with a small dual encoder,
which python -m examples.emoji.capfilt_ranker trains in a checkout.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors
from ofa_exit.cli.renamed import run_example
from ofa_exit.cli.user_dir import PACKAGE
from ofa_exit.data.formats import CAPTION_COLS

EXAMPLE = "examples.emoji.capfilt_ranker"
DUAL_ENCODER_FILE = "checkpoint_best.pt"


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("capfilt", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--selected-cols",
            default=CAPTION_COLS,
            help="columns of identifier, image and caption, as for training (default: %(default)s)",
        )
        command.add_argument(
            "--image-id-column", type=int, default=1,
            help="column, from 0, with the image id (default: %(default)s)",
        )  # fmt: skip
        return command

    images = add("images", "write one row per image, to sample captions for")
    images.add_argument("tsv", type=Path, help="caption TSV; captions may be empty")
    images.add_argument("out", type=Path, help="TSV to write")

    chosen = add("filter", "keep the sampled captions that fit their images best")
    chosen.add_argument("tsv", help="file that was generated for")
    chosen.add_argument(
        "generated", nargs="+", help="generate-SPLIT.txt of fairseq-generate --results-path; all "
        "of the files if shards or processes shared the work",
    )  # fmt: skip
    chosen.add_argument("--out", type=Path, required=True, help="caption TSV to write")
    chosen.add_argument(
        "--keep", type=int, default=2, help="captions per image (default: %(default)s)"
    )
    chosen.add_argument(
        "--allow-missing", action="store_true", help="leave out rows without samples"
    )
    chosen.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows with an unreadable image"
    )
    chosen.add_argument(
        "--ranker", required=True,
        help="a CLIP: folder of save_pretrained, or name on the hub; or a ranker of your own: a "
        "Python file that defines load_ranker(checkpoint, device)",
    )  # fmt: skip
    chosen.add_argument("--ranker-checkpoint", help="checkpoint for a ranker of your own")
    chosen.add_argument(
        "--bpe-dir", help="vocabulary for a ranker of your own (default: as in its training)"
    )
    chosen.add_argument(
        "--batch-size", type=int, default=32, help="images per batch (default: %(default)s)"
    )
    chosen.add_argument("--device", help="default: cuda if there is one")
    return parser


def ranker_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``load_ranker``.

    In the previous release a dual encoder of the emoji example was given as --ranker alone, by its
    file or folder.
    """
    source, checkpoint = Path(args.ranker), args.ranker_checkpoint
    is_dual_encoder = source.is_file() and source.suffix != ".py"
    if is_dual_encoder or (source / DUAL_ENCODER_FILE).is_file():
        source, checkpoint = PACKAGE.parent.joinpath(*EXAMPLE.split(".")), args.ranker
        if not source.is_dir():
            raise ValueError(
                f"--ranker {args.ranker} is a dual encoder, whose code is not installed: run this "
                f"in a checkout of ofa-exit, or give {EXAMPLE.replace('.', '/')} as --ranker"
            )
    return {
        "source": str(source),
        "device": args.device,
        "checkpoint": checkpoint,
        "bpe_dir": args.bpe_dir,
    }


def run(args: argparse.Namespace) -> None:
    # Slow, so not for --help.
    import torch

    from ofa_exit.prepare.capfilt.filtering import filter_captions
    from ofa_exit.prepare.capfilt.images import write_images
    from ofa_exit.prepare.capfilt.rankers import load_ranker

    check_outputs(args, "out")
    if args.command == "images":
        images, rows = write_images(args.tsv, args.out, args.selected_cols, args.image_id_column)
        print(f"{args.out}: {images} images of {rows} rows")
        return
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    names = {"ranker": args.ranker, "ranker_checkpoint": args.ranker_checkpoint}
    counts = filter_captions(
        load_ranker(**ranker_options(args)),
        args.generated,
        args.tsv,
        args.out,
        keep=args.keep,
        selected_cols=args.selected_cols,
        image_id_column=args.image_id_column,
        allow_missing=args.allow_missing,
        skip_bad_rows=args.skip_bad_rows,
        batch_size=args.batch_size,
        options={name: value for name, value in names.items() if value is not None},
    )
    print(f"{args.out}: {counts.text(args.keep)}")


@prints_errors("capfilt", OSError, ValueError, ImportError, FloatingPointError, resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["train"], ["recall"]):
        new = f"python -m {EXAMPLE} {arguments[0]}"
        print(f"ofa-exit capfilt {arguments[0]} is now {new}", file=sys.stderr)
        return run_example(EXAMPLE, arguments)
    run(build_parser().parse_args(arguments))
    return 0

"""Caption your own images, or ask about them. No data file is needed.

  ofa-exit predict caption photos/ --checkpoint caption.pt --bpe-dir BPE --html captions.html
  ofa-exit predict vqa photo.jpg --question "what colour is the car?" --checkpoint vqa.pt
  ofa-exit predict entailment photo.jpg --hypothesis "a man sleeps" --checkpoint snli_ve.pt

IMAGE is a file, a folder or a glob in quotes ('photos/**/*.jpg'). Of a folder, the images directly
in it are taken, with --recursive those of its sub-folders, too. A line per image has its path, the
text, the layers used and the time, separated by tabs. Image size and vocabulary options are those
of the checkpoint.

--exit-policy NAME and the options of that policy are those of fairseq-generate, for example
--exit-policy similarity --exit-decoder-threshold 0.9.

An image that cannot be read is reported and left out. The exit status is then 1.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, print_error, reject_unknown_option
from ofa_exit.data.formats import MAX_PIXELS

TASKS = {
    "caption": "caption images",
    "vqa": "answer questions about images",
    "entailment": "say whether images entail a hypothesis: yes, maybe or no",
}
ALIASES = {"entailment": ["snli_ve"]}
# Importing their registry would import torch.
POLICIES = (
    *("similarity", "static", "confidence", "entropy", "patience"),
    *("softmax", "softmax_diff", "saturation", "meta", "learned"),
)
AddOptions = Callable[[argparse.ArgumentParser], None]


def build_parser(add_exits: AddOptions = lambda parser: None) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        add_exits: adds the options of exit policies, which are known once torch is imported.
    """
    parser = new_parser("predict", __doc__, allow_abbrev=False)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for task, text in TASKS.items():
        own = tasks.add_parser(
            task,
            aliases=ALIASES.get(task, []),
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"--exit-policy NAME exits early, by one of {', '.join(POLICIES)}, or a policy "
            "of --user-dir. It and the options of the policy are those of fairseq-generate "
            "(docs/exits.md). `ofa-exit predict --help` has examples.",
            allow_abbrev=False,
        )
        _add_options(own)
        _add_options_of_task(own, task)
        # Exit options themselves would fill a screen.
        own.usage = own.format_usage().removeprefix("usage: ").rstrip() + " [--exit-policy NAME …]"
        add_exits(own)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add what all tasks take."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="files, folders and globs")
    add("--checkpoint", required=True, metavar="FILE", help="of fairseq-train, or OFA's")
    add(
        "--bpe-dir",
        metavar="FOLDER",
        help="folder of dict.txt (default: the checkpoint's, else the one of its training)",
    )
    add("--recursive", action="store_true", help="also take the images of sub-folders")
    add("--json", action="store_true", help="print a JSON object per image")
    add("--html", type=Path, metavar="OUT.html", help="also write a page of words by exit layer")
    add("--batch-size", type=int, default=16, metavar="N", help="images (default: %(default)s)")
    add("--device", help="as torch names it: cuda, cuda:1, cpu (default: cuda if there is one)")
    add("--fp16", action="store_true", help="use half precision")
    add(
        "--ema-eval",
        action="store_true",
        help="use the moving average of the weights, which training keeps by --store-ema",
    )
    add("--user-dir", metavar="FOLDER", help="module that registers exit policies")
    for option, text in (
        ("--patch-image-size", "side of the resized images, in pixels"),
        ("--max-image-pixels", "largest image to read, width times height"),
        ("--code-dict-size", "image codes in the vocabulary"),
        ("--num-bins", "position bins in the vocabulary"),
    ):
        fallback = f"{MAX_PIXELS:,}" if option == "--max-image-pixels" else "the checkpoint's"
        add(option, type=int, metavar="N", help=f"{text} (default: {fallback})")


def _add_options_of_task(parser: argparse.ArgumentParser, task: str) -> None:
    add = parser.add_argument
    if task == "caption":
        add("--caption-prompt", metavar="TEXT", help="decoder prompt (default: the checkpoint's)")
    else:
        text = {"vqa": "question", "entailment": "hypothesis"}[task]
        add(
            f"--{text}",
            dest="texts",
            action="append",
            required=True,
            metavar="TEXT",
            help=f"{text} for every image; may be repeated",
        )
        add("--prompt-type", help="decoder prompt: none, src, prev_output (default: the "
            "checkpoint's)")  # fmt: skip
    if task == "vqa":
        add("--answers", metavar="FILE", help="closed set of answers, one per line")
        add(
            "--beam-search-vqa-eval",
            action="store_true",
            default=None,
            help="with --answers: search among them by a beam, instead of scoring each of them",
        )
        add(
            "--objects",
            metavar="TEXT",
            help="what is in the images, joined by &&, for a checkpoint of --add-object",
        )
        add(
            "--max-object-length",
            type=int,
            metavar="N",
            help="largest number of objects to read (default: the checkpoint's)",
        )
    if task == "entailment":
        add(
            "--labels",
            metavar="LABEL,…",
            help="answers of the model, as in true,false (default: the checkpoint's)",
        )
        add("--premise", metavar="TEXT", help="caption, for a checkpoint of --add-caption")
        return
    add("--beam", type=int, metavar="N", help="hypotheses of the search (default: 5)")
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="longest text in tokens (default: 16 for captions, the training's for answers)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    # Exit options, and so their values, are unknown before torch is imported.
    reject_unknown_option(parser, [one for one in given if not one.startswith("--exit-")])
    args, _ = parser.parse_known_args(given)
    if args.html is not None and args.html.suffix not in (".html", ".htm"):
        parser.error(f"--html {args.html}: name a file that ends in .html")
    # Slow, so after the first parse.
    from ofa_exit.cli.predict.run import add_exits, import_policies, predict
    from ofa_exit.plugin.errors import PredictionError

    try:
        import_policies(args.user_dir)
        return predict(build_parser(add_exits).parse_args(given))
    except (PredictionError, FloatingPointError) as error:
        return print_error("predict", error)

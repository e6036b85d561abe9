"""Predictions for a parsed command line: lines, JSON and the page of coloured words."""

import argparse
import json
import logging
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from fairseq import utils
from fairseq.dataclass.utils import gen_parser_from_dataclass
from PIL import Image
from tqdm import tqdm

from ofa_exit.cli.parsing import check_outputs
from ofa_exit.data.own_images import find_images
from ofa_exit.data.thumbnails import png
from ofa_exit.plugin.errors import PredictionError, prediction_errors
from ofa_exit.plugin.options import PREFIX, ExitFlags, add_late_options
from ofa_exit.plugin.predict import Prediction, write_page
from ofa_exit.plugin.predict.checkpoint import ALIASES, TASK_OPTIONS
from ofa_exit.plugin.predict.exits import open_checked
from ofa_exit.plugin.predict.loading import load_opened
from ofa_exit.plugin.predict.predictor import Predictor


def import_policies(user_dir: Optional[str]) -> None:
    """Import the module of ``--user-dir``, which registers exit policies."""
    if user_dir is not None:
        if not Path(user_dir).exists():
            raise PredictionError(f"--user-dir {user_dir}: no such module. Check the path")
        with prediction_errors():
            utils.import_user_module(Namespace(user_dir=user_dir))


def add_exits(parser: argparse.ArgumentParser) -> None:
    """Add the options of all exit policies, as fairseq-generate has them."""
    group: Any = parser.add_argument_group("exits")
    gen_parser_from_dataclass(group, ExitFlags())
    add_late_options(group)


def exit_options(args: Namespace) -> dict[str, Any]:
    """Return the given options of the policy, without their prefix."""
    if args.exit_trace:
        raise PredictionError("--exit-trace: only fairseq-generate writes a trace; use --json")
    late = json.loads(args.exit_late_options or "{}")
    values = {name: value for name, value in vars(args).items() if name.startswith(PREFIX)}
    for name in ("exit_policy", "exit_late_options"):
        del values[name]
    given = {name: value for name, value in {**values, **late}.items() if value is not None}
    return {name.removeprefix(PREFIX): value for name, value in given.items()}


def predict(args: Namespace) -> int:
    """Print a line per image, and write the page; return the exit status.

    Raises:
        PredictionError: options or files that do not fit. Images that cannot be read are reported.
    """
    logging.basicConfig(format="ofa-exit predict: %(message)s", level=logging.WARNING, force=True)
    exits, options = args.exit_policy, exit_options(args)
    task = ALIASES.get(args.task, args.task)
    with prediction_errors():
        images = find_images(args.images, args.recursive)
        if args.html is not None:
            folder = args.bpe_dir or Path(args.checkpoint).parent
            check_outputs(args, "html", inputs=[images, Path(folder, "dict.txt")])
            check_page(args.html)
        saved = open_checked(args.checkpoint, task, exits, options)
    texts = getattr(args, "texts", [""])
    premise, objects = getattr(args, "premise", None), getattr(args, "objects", None)
    task_options = {name: getattr(args, name, None) for name in TASK_OPTIONS}
    task_options["add_caption"] = True if premise else None
    task_options["add_object"] = True if objects else None
    model = load_opened(saved, args.device, args.bpe_dir, args.fp16, args.ema_eval, task_options)
    # Made while the images are read: later they may be gone.
    thumbnails: dict[str, bytes] = {}

    def keep_thumbnail(name: str, image: Image.Image) -> None:
        thumbnails[name] = png(image)

    pairs = [(image, text) for image in images for text in texts]
    results = model.predict(
        task,
        [image for image, _ in pairs],
        [text for _, text in pairs],
        premise,
        objects=objects,
        exits=exits,
        beam=getattr(args, "beam", None),
        max_length=getattr(args, "max_length", None),
        batch_size=args.batch_size,
        skip_unreadable=True,
        on_read=keep_thumbnail if args.html is not None else None,
        **options,
    )
    found: list[Prediction] = []
    unread: dict[str, None] = {}
    # Without a terminal there is no bar.
    bar = tqdm(results, total=len(pairs), unit="image", disable=None if len(pairs) > 1 else True)
    for result in bar:
        if result.error is not None:
            if result.image in unread:
                continue
            unread[result.image] = None
            tqdm.write(f"ofa-exit predict: {result.image}: {result.error}", file=sys.stderr)
            continue
        tqdm.write(line_of(result, args.json, len(texts) > 1), file=sys.stdout)
        found.append(result)
    if args.html is not None and found:
        write_page(args.html, found, [thumbnails[one.image] for one in found])
    if found and found[0].exits != "none" and not _any_exit(found, model):
        print(
            f"ofa-exit predict: --exit-policy {found[0].exits}: nothing exited early. Give options "
            "that exit sooner, such as a lower threshold",
            file=sys.stderr,
        )
    if unread:
        counts = f"{len(unread)} of {len(images)} images could not be read"
        print(f"ofa-exit predict: {counts}", file=sys.stderr)
    return 1 if unread else 0


def _any_exit(results: Iterable[Prediction], model: Predictor) -> bool:
    """Return whether an image, a text or a word left before the last layer."""
    encoder_layers = len(model.model.encoder.layers)
    return any(
        one.image_layers < encoder_layers
        or one.text_layers < encoder_layers
        or any(0 < layer < model.depth for layer in one.layers)
        for one in results
    )


def line_of(result: Prediction, as_json: bool, with_source: bool) -> str:
    """Return a result as a line: path, (question,) text, layers and time, separated by tabs."""
    if as_json:
        return json.dumps(result.as_dict(), ensure_ascii=False)
    source = [result.source] if with_source else []
    layers, time = result.answer().layers, f"{1000 * result.seconds:.1f} ms"
    return "\t".join([result.image, *source, result.text, layers, time])


def check_page(path: Path) -> None:
    """Make the folder of a page. Raise ValueError if the page cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise PredictionError(
            f"--html {path}: cannot be written ({error.strerror}). Choose another file"
        ) from error

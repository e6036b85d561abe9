"""Small data in OFA's formats, and fairseq's commands in this process."""

from __future__ import annotations

import base64
import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import fairseq_cli.generate
import fairseq_cli.train
import fairseq_cli.validate
from fairseq import checkpoint_utils, options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from fairseq.utils import strip_pad
from PIL import Image

import ofa_exit.plugin  # noqa: F401

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
LABELS = ("entailment", "neutral", "contradiction")
WORDS = (
    *("what", "does", "the", "image", "describe", "?", "a", "square", "of", "paint", "&&"),
    *("can", "and", "text1", "imply", "text2", '"', "yes", "maybe", "no", *COLOURS),
)
NANO = [
    *["--arch", "ofa_nano", "--encoder-embed-dim", "32", "--decoder-embed-dim", "32"],
    *["--encoder-ffn-embed-dim", "64", "--decoder-ffn-embed-dim", "64", "--resnet-width", "8"],
    *["--encoder-attention-heads", "2", "--decoder-attention-heads", "2"],
]
SMALL = ["--patch-image-size", "32", "--code-dict-size", "0", "--num-bins", "0"]


def image_field(colour: str, side: int = 16) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return base64.urlsafe_b64encode(buffer.getvalue()).decode()


def caption_row(number: int, references: int = 1, image: str | None = None) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    captions = [f"a {colour} square", f"a square of {colour} paint"][:references]
    field = image_field(colour) if image is None else image
    return [f"c{number}", f"i{number}", "&&".join(captions), "", field]


def entailment_row(number: int, image: str | None = None) -> list[str]:
    colour, label = COLOURS[number % len(COLOURS)], LABELS[number % 3]
    field = image_field(colour) if image is None else image
    return [f"e{number}", f"i{number}", field, f"a {colour} square", f"{colour} paint", label]


def write_tsv(path: Path, rows: list[list[str]]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def write_dictionary(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    return folder


def caption_folder(folder: Path, test_rows: int = 11) -> Path:
    """Write train, valid (9 rows) and test files with a dictionary of words."""
    write_dictionary(folder)
    write_tsv(folder / "train.tsv", [caption_row(n) for n in range(12)])
    write_tsv(folder / "valid.tsv", [caption_row(n, 2) for n in range(9)])
    write_tsv(folder / "test.tsv", [caption_row(n, 2) for n in range(test_rows)])
    return folder


def entailment_folder(folder: Path, test_rows: int = 11) -> Path:
    write_dictionary(folder)
    for name, rows in (("train", 12), ("valid", 9), ("test", test_rows)):
        write_tsv(folder / f"{name}.tsv", [entailment_row(n) for n in range(rows)])
    return folder


def run(parser: Any, main: Any, arguments: list[str]) -> Any:
    return main(convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments)))


def train(
    task: str, data: Any, save_dir: Path, *more: str, updates: int = 3, resumable: bool = False
) -> Path:
    """Run fairseq-train; the checkpoint's path."""
    arguments = [
        *[str(data), "--task", task, "--save-dir", str(save_dir), "--criterion", "mue_loss"],
        *["--optimizer", "adam", "--lr", "0.003", "--max-update", str(updates), "--cpu"],
        *["--batch-size", "4", "--num-workers", "0", "--log-format", "json", *NANO, *SMALL],
        *["--no-epoch-checkpoints", "--split-modalities", *more],
        *([] if resumable else ["--no-save-optimizer-state"]),
    ]
    # fairseq keeps the best score for the life of the process.
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    run(options.get_training_parser(), fairseq_cli.train.main, arguments)
    return save_dir / "checkpoint_last.pt"


def generate_arguments(task: str, data: Any, checkpoint: Any, *more: str) -> list[str]:
    return [
        *[str(data), "--task", task, "--path", str(checkpoint), "--cpu", *SMALL],
        *["--num-workers", "0", *([] if "--max-tokens" in more else ["--batch-size", "4"])],
        *(["--max-len-b", "6"] if task == "mue_caption" else []),
        *more,
    ]


def generate(task: str, data: Any, checkpoint: Any, *more: str) -> dict[str, Any]:
    """Run fairseq-generate; its lines by kind (S, T, H, D, P) and id, result and report."""
    arguments = generate_arguments(task, data, checkpoint, *more)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(options.get_generation_parser(), fairseq_cli.generate.main, arguments)
    lines: dict[str, Any] = {**{kind: {} for kind in "STHDP"}, "report": []}
    for line in printed.getvalue().splitlines():
        kind, _, rest = line.partition("-")
        if kind in lines and "\t" in rest:
            number, *values = rest.split("\t")
            lines[kind].setdefault(int(number), []).append(values)
        elif line.startswith("Generate "):
            lines["result"] = line
        else:  # the table and the summary
            lines["report"].append(line)
    return lines


def setup(task: str, data: Any, **options: Any) -> Any:
    """Set up the task, with options as in a command's configuration."""
    usual = dict(num_shards=1, shard_id=0, patch_image_size=32, code_dict_size=0, num_bins=0)
    config = TASK_DATACLASS_REGISTRY[task](
        data=None if data is None else str(data), **{**usual, **options}
    )
    config._name = task
    return TASK_REGISTRY[task].setup_task(config)


def load(task: Any, *checkpoints: Path) -> list[Any]:
    return checkpoint_utils.load_model_ensemble(list(map(str, checkpoints)), task=task)[0]


def generate_rows(
    task: Any,
    models: list[Any],
    batch_size: int | None = 4,
    max_tokens: int | None = None,
    num_workers: int = 0,
    **options: Any,
) -> dict[int, list[dict[str, Any]]]:
    """Generate for the split test as fairseq-generate does; hypotheses by row.

    Each hypothesis also gets its words and the row's printed references.
    """
    task.load_dataset("test")
    rows = task.get_batch_iterator(
        task.dataset("test"),
        max_tokens=max_tokens,
        max_sentences=batch_size,
        num_workers=num_workers,
        required_batch_size_multiple=8,
        num_shards=1,
        max_positions=(128, 128),
    ).next_epoch_itr(shuffle=False)
    searched = {"beam": 5, "max_len_b": 6} if task.prefix == "caption" else {}
    generator = task.build_generator(models, Namespace(**{**searched, **options}))
    prefix_size = options.get("prefix_size", 0)
    found: dict[int, list[dict[str, Any]]] = {}
    for sample in rows:
        if "net_input" not in sample:
            continue
        prefix = sample["target"][:, :prefix_size] if prefix_size else None
        hypotheses = task.inference_step(generator, models, sample, prefix_tokens=prefix)
        for number, row, target in zip(sample["id"].tolist(), hypotheses, sample["target"]):
            assert number not in found
            found[number] = row
            for hypothesis in row:
                hypothesis["words"] = task.text(hypothesis["tokens"])
                hypothesis["references"] = task.dictionary.string(strip_pad(target, 1))
    return found


def validate(data: Any, checkpoint: Any, *more: str) -> None:
    """Run fairseq-validate like its command: flags override the checkpoint's."""
    parser = options.get_validation_parser()
    arguments = [str(data), "--path", str(checkpoint), "--cpu", "--num-workers", "0", *more]
    args = options.parse_args_and_arch(parser, arguments)
    override_parser = options.get_validation_parser()
    overrides = options.parse_args_and_arch(override_parser, arguments, suppress_defaults=True)
    fairseq_cli.validate.main(convert_namespace_to_omegaconf(args), override_args=overrides)


def criterion(task: Any) -> Any:
    """The loss at full depth, label smoothing 0."""
    return CRITERION_REGISTRY["mue_loss"](task, 0.0, "uniform", 0.0, 0, False, False).eval()

"""The steps of a small experiment: how each runs, what it makes, and what may be half-done."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fairseq_cli.generate
import numpy as np
import torch
from fairseq import options
from helpers import prepare_samples
from helpers import task_files as files

# Imported here, once, and not in every process.
from ofa_exit.cli import prepare as _prepare  # noqa: F401
from ofa_exit.cli.calibrate import run as calibrate_run  # noqa: F401
from ofa_exit.cli.main import main as ofa_exit
from ofa_exit.cli.merge import shards as merge_shards  # noqa: F401
from ofa_exit.data.row_index import index_path, row_offsets
from ofa_exit.evaluation.efficiency.shards import read_shard
from ofa_exit.models.checkpoint_file import read_checkpoint

UPDATES = 8  # of 3 an epoch
IMAGES = 40
INDEXED_ROWS = 200_000


@dataclass
class Step:
    """A step of the experiment.

    Args:
        run: makes the folder's files; run again, it resumes.
        contents: returns what must equal the uninterrupted run, by file.
        looks_whole: returns the names of the files that a reader would take for complete.
        needs_folder: whether it fails where it cannot write.
    """

    name: str
    run: Callable[[Path], int | None]
    contents: Callable[[Path], dict[str, Any]]
    looks_whole: Callable[[Path], list[str]]
    needs_folder: bool = True


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_stamps(contents: dict[str, Any]) -> dict[str, Any]:
    """Leave the size and time of the indexed file out of an index."""
    return {
        name: value[-8 * (len(value) // 8 - 18) :] if name.endswith(".offsets") else value
        for name, value in contents.items()
    }


def prepared(folder: Path) -> dict[str, Any]:
    """The files; manifests without the time when theirs was written."""
    found = without_stamps(all_files(folder))
    for name in [name for name in found if name.endswith(".manifest.json")]:
        found[name] = json.loads(found[name])
        del found[name]["output"]["mtime_ns"]
    return found


def digest(state: Any) -> str:
    """Hash a state dict or optimizer state to the bit."""
    if isinstance(state, torch.Tensor):
        state = (str(state.dtype), tuple(state.shape), state.numpy().tobytes())
    elif isinstance(state, dict):
        state = [(key, digest(value)) for key, value in state.items()]
    elif isinstance(state, (list, tuple)):
        state = [digest(value) for value in state]
    return hashlib.sha256(pickle.dumps(state)).hexdigest()


def trained(folder: Path) -> dict[str, Any]:
    """Weights, optimizer state and updates per checkpoint; meters hold times."""
    found: dict[str, Any] = {}
    for name in all_files(folder):
        found[name] = None
        if name.endswith(".pt"):
            state = read_checkpoint(folder / name)
            updates = state["optimizer_history"][-1]["num_updates"]
            found[name] = updates, digest([state["model"], state["last_optimizer_state"]])
    return found


def whole_checkpoints(folder: Path) -> list[str]:
    """All that are named as checkpoints look whole; reading them raises if they are not."""
    names = [name for name in all_files(folder) if name.endswith(".pt")]
    for name in names:
        read_checkpoint(folder / name)
    return []


def final_files(*names: str) -> Callable[[Path], list[str]]:
    return lambda folder: [name for name in names if (folder / name).exists()]


def without_times(folder: Path) -> dict[str, Any]:
    """The sweep's lines without measured times."""
    rows = csv.DictReader((folder / "sweep.csv").open())
    kept = [{k: v for k, v in row.items() if "time" not in k and "second" not in k} for row in rows]
    return {**dict.fromkeys(all_files(folder)), "sweep.csv": kept}


def calibrated(folder: Path) -> dict[str, Any]:
    """The chosen exits, and the rows without measured times."""
    found: dict[str, Any] = all_files(folder)
    lines = [json.loads(line) for line in found["exits.rows.jsonl"].splitlines()]
    for line in lines[1:]:
        del line["costs"]["time"]
    return {**found, "exits.rows.jsonl": lines}


def shard_files(folder: Path) -> dict[str, Any]:
    return {
        name: value if name.endswith(("generate-test.txt", "trace.jsonl")) else None
        for name, value in all_files(folder).items()
    }


def whole_shards(folder: Path) -> list[str]:
    """The files of the shards that ``ofa-exit merge`` would take."""
    whole = []
    for shard in ("0", "1"):
        with contextlib.suppress(ValueError):
            read_shard(folder / shard)
            whole += [f"{shard}/generate-test.txt", f"{shard}/trace.jsonl"]
    return whole


def generate(data: Path, checkpoint: Path, folder: Path, shard: int) -> None:
    """Generate a shard as ``fairseq-generate … > FOLDER/log.txt``."""
    more = ["--results-path", str(folder), "--exit-trace", str(folder / "trace.jsonl")]
    more += ["--num-shards", "2", "--shard-id", str(shard), "--exit-policy", "similarity"]
    with contextlib.suppress(OSError):  # the command itself shall report it
        folder.mkdir(parents=True, exist_ok=True)
    with _printed_to(folder / "log.txt"):
        arguments = files.generate_arguments("mue_caption", data, checkpoint, *more)
        files.run(options.get_generation_parser(), fairseq_cli.generate.main, arguments)


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """Let standard output go to a file, as a shell does; leave it if that cannot be made."""
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError:
        yield
        return
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(log, 1)
    os.close(log)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(before, 1)
        os.close(before)


def steps(scratch: Path) -> list[Step]:
    """Return all steps; their inputs are made in ``scratch``."""
    data = files.caption_folder(scratch / "data")
    files.write_tsv(data / "rows.tsv", [files.caption_row(n, 2) for n in range(24)])
    release = scratch / "release"
    prepare_samples.many_coco_images(release, IMAGES)
    table = scratch / "indexed"
    table.mkdir()
    rows = "".join(f"{n}\t{n % 7 * 'x'}\n" for n in range(INDEXED_ROWS))
    grid = scratch / "grid.json"
    grid.write_text(json.dumps([{}, {"exit_policy": "static", "exit_depths": "2,3,1"}]))
    checkpoint = scratch / "checkpoint" / "checkpoint_last.pt"
    shards = scratch / "shard-inputs"
    sys.argv = ["faults"]  # fairseq's parsers look for --user-dir there

    def make_inputs() -> None:
        files.train("mue_caption", data, checkpoint.parent, updates=2)
        for shard in (0, 1):
            generate(data, checkpoint, shards / f"{shard}", shard)

    def train(out: Path) -> None:
        more = ["--save-interval-updates", "2", "--keep-interval-updates", "2"]
        files.train("mue_caption", data, out, *more, updates=UPDATES, resumable=True)

    def prepare(out: Path) -> int:
        return ofa_exit(["prepare", "coco", str(release), str(out)])

    def index(out: Path) -> None:
        if not (out / "rows.tsv").exists():
            out.mkdir(exist_ok=True)
            (out / "rows.tsv").symlink_to(table / "rows.tsv")
        _, offsets = row_offsets(out / "rows.tsv")
        assert len(offsets) == INDEXED_ROWS + 1

    def sweep(out: Path) -> int:
        given = files.generate_arguments("mue_caption", data, checkpoint, "--gen-subset", "test")
        scoring = ["--scoring", "coco_caption", "--coco-tokenizer", "plain"]
        return ofa_exit(["sweep", str(grid), str(out / "sweep.csv"), *given, *scoring])

    def generate_shards(out: Path) -> None:
        for shard in (0, 1):
            if f"{shard}/generate-test.txt" not in whole_shards(out):
                generate(data, checkpoint, out / f"{shard}", shard)

    def merge(out: Path) -> int:
        if (out / "generate-test.txt").exists():  # merge rejects a folder with a whole generation
            return 0
        folders = [str(shards / "0"), str(shards / "1")]
        return ofa_exit(["merge", str(out), *folders, "--trace", "trace.jsonl"])

    def calibrate(out: Path) -> int:
        given = ["--checkpoint", str(checkpoint), "--out", str(out / "exits.json"), "--cpu"]
        given += ["--keep", "0.5", "--confidence", "0.6", "--batch-size", "4", "--max-len-b", "6"]
        given += ["--exit-image-threshold", "2", "--exit-text-threshold", "2"]  # fewer settings
        rows = str(data / "rows.tsv")
        return ofa_exit(["calibrate", rows, *given, "--num-workers", "0", *files.SMALL])

    (table / "rows.tsv").write_text(rows)
    make_inputs_step = Step("inputs", lambda out: make_inputs(), all_files, final_files())
    prepared_names = [f"{split}.tsv" for split in ("train", "valid", "test")]
    return [
        make_inputs_step,
        Step("training", train, trained, whole_checkpoints),
        Step("preparation", prepare, prepared, final_files(*prepared_names)),
        Step("indexing", index, indexed, final_files(), needs_folder=False),
        Step("sweep", sweep, without_times, final_files("sweep.csv")),
        Step("shards", generate_shards, shard_files, whole_shards),
        Step("merge", merge, shard_files, final_files("generate-test.txt", "trace.jsonl")),
        Step("calibration", calibrate, calibrated, final_files("exits.json")),
    ]


def indexed(folder: Path) -> dict[str, Any]:
    """The offsets, as a reader maps them."""
    index = index_path(folder / "rows.tsv")
    names = [name for name in all_files(folder) if name != "rows.tsv"]
    return {**dict.fromkeys(names), "offsets": np.load(index)[2:].tobytes()}

"""The emoji scripts through the real command lines, on a few rows of the built-in data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ofa_exit.evaluation.table import read_run

ROOT = Path(__file__).resolve().parents[1]
EMOJI = ROOT / "examples" / "emoji"
SCRIPTS = ROOT / "run_scripts" / "emoji"


def few_rows(folder: Path, rows: int = 8) -> Path:
    folder.mkdir()
    (folder / "dict.txt").write_bytes((EMOJI / "dict.txt").read_bytes())
    for file in EMOJI.glob("*.tsv"):
        with file.open(encoding="utf-8") as lines:
            few = [line for _, line in zip(range(rows), lines)]
        (folder / file.name).write_text("".join(few), encoding="utf-8")
    return folder


def script(name: str, *arguments: object, **environment: str) -> str:
    """Runs a script from another directory; returns all that it printed."""
    done = subprocess.run(
        ["bash", str(SCRIPTS / name), *map(str, arguments)],
        env={
            **os.environ,
            **environment,
            "BIN": os.path.dirname(sys.executable),
            "OMP_NUM_THREADS": "1",
            "DEVICE": "cpu",
        },
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize("task", ["caption", "entailment"])
def test_train_finetune_generate_and_compare(task, tmp_path):
    data = str(few_rows(tmp_path / "data"))
    small = {"DATA": data, "BATCH": "4"}
    backend = {"caption": "legacy_ddp", "entailment": "pytorch_ddp"}[task]
    script("pretrain.sh", task, tmp_path / "plain", 2, **small, PROCESSES="2", DDP=backend)
    plain = tmp_path / "plain" / "checkpoint_last.pt"
    script("finetune.sh", task, "mue", plain, tmp_path / "mue", 2, **small)
    checkpoint = tmp_path / "mue" / "checkpoint_last.pt"
    for name, options in (
        ("full", []),
        ("exits", ["--exit-policy", "similarity", "--exit-image-threshold", "0.2"]),
    ):
        more = ["--coco-tokenizer", "plain"] if task == "caption" else []
        script(
            "generate.sh",
            task,
            checkpoint,
            "test_artist",
            tmp_path / name,
            *options,
            *more,
            **small,
        )
    full, exits = read_run(tmp_path / "full"), read_run(tmp_path / "exits")
    assert full["sentences"] == exits["sentences"] == 8
    assert full["image_layers"] == 6 > exits["image_layers"]
    again = script("generate.sh", task, checkpoint, "test_artist", tmp_path / "full", **small)
    assert "is there already" in again

"""Runs of the scripts, with the real commands or with stand-ins."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from helpers import task_files as files
from helpers.paths import ROOT

SMALL = [*files.SMALL, "--num-workers", "0"]
TASKS = {
    "snli_ve": "mue_snli_ve",
    "coco": "mue_caption",
    "nocaps": "mue_caption",
    "vqa": "mue_vqa",
    "okvqa": "mue_vqa",
    "gqa": "mue_vqa",
    "vizwiz": "mue_vqa",
    "visdial": "mue_visdial",
    "rsicd": "mue_caption",
    "vqa_rad": "mue_vqa",
}
# Their scripts are links to those of run_scripts/data_set.
SHARED = ("rsicd", "vqa_rad")
# Data sets that BLIPEE trains exits on, with the mode of the paper's table or the default.
BLIPEE = {
    "coco": "supervised",
    "vqa": "supervised",
    "okvqa": "distill",
    "gqa": "distill",
    "vizwiz": "distill",
    "visdial": "distill",
    "rsicd": "supervised",
    "vqa_rad": "supervised",
}
# Those that BLIPEE's exits are trained on by the rows of train.tsv.
TRAIN_ROWS = ("okvqa", *SHARED)
BLIPEE_GRID = {"GRID": str(ROOT / "run_scripts" / "grids" / "blipee.json")}
# A column of every sweep of the data set.
QUALITY = {"coco": "CIDEr", "nocaps": "CIDEr", "visdial": "MRR", "rsicd": "CIDEr"}
# A stand-in for the commands that records how it was called.
RECORD = """\
#!/usr/bin/env bash
for last in "$@"; do printf '%q ' "$last" >> CALLS; done
echo >> CALLS
"""
# Python, except for ofa-exit, whose calls are recorded, and for counting rows, which imports torch.
PYTHON = """\
#!/usr/bin/env bash
case "$2" in
  ofa_exit) for one in "${@:3}"; do printf '%q ' "$one" >> CALLS; done; echo >> CALLS ;;
  *row_offsets*) wc -l < "$3" ;;
  *) exec REAL "$@" ;;
esac
"""


def run(script: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        ["bash", str(ROOT / "run_scripts" / script), *map(str, arguments)],
        env={
            **os.environ,
            "BIN": os.path.dirname(sys.executable),
            "OMP_NUM_THREADS": "1",
            "DEVICE": "cpu",
            **environment,
        },
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture
def calls(tmp_path):
    """Yield a folder of stand-ins for the commands, and a function that reads their calls."""
    log = tmp_path / "calls"
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("fairseq-train", "fairseq-generate", "python"):
        text = PYTHON if name == "python" else RECORD
        text = text.replace("CALLS", shlex.quote(str(log))).replace("REAL", sys.executable)
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)

    def read() -> list[list[str]]:
        lines = log.read_text().splitlines()
        log.unlink()
        return [shlex.split(line) for line in lines]

    return str(commands), read


def failing(script: str, *arguments: object, **environment: str) -> str:
    """Run a script that must fail with status 2; return its error output."""
    done = subprocess.run(
        ["bash", str(ROOT / "run_scripts" / script), *map(str, arguments)],
        env={**os.environ, "DEVICE": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr

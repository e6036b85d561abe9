"""The emoji scripts through the real command lines, on a few rows of the built-in data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.emoji_scripts import EMOJI, few_rows, script
from helpers.paths import ROOT

from ofa_exit.evaluation.figures.table import read_run

# A training whose second process fails; the first would wait for it, and tells how it ended.
ONE_FAILS = """\
#!/usr/bin/env bash
while [ "$1" != --distributed-rank ]; do shift; done
if [ "$2" = 1 ]; then
  while [ ! -e waiting ]; do sleep 0.1; done
  echo "rank 1: what went wrong" >&2
  exit 7
fi
trap 'kill %1; echo stopped > waiting; exit 1' TERM
sleep 600 &
echo > waiting
wait
"""


@pytest.mark.parametrize("stopped_by", ["a process that fails", "the user"])
def test_training_processes_end_together(stopped_by, tmp_path):
    (tmp_path / "fairseq-train").write_text(
        ONE_FAILS.replace("exit 7", "exec sleep 600" if stopped_by == "the user" else "exit 7")
    )
    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "fairseq-train").chmod(0o755)
    running = subprocess.Popen(
        ["bash", "-c", f"source {ROOT}/run_scripts/common.sh; train data; echo went on"],
        env={**os.environ, "BIN": str(tmp_path), "DEVICE": "cpu", "PROCESSES": "2"},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Jobs in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if stopped_by == "the user":
        while not (tmp_path / "waiting").exists():
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
    printed, _ = running.communicate(timeout=120)
    for _ in range(100):
        if (tmp_path / "waiting").read_text() == "stopped\n":
            break
        time.sleep(0.1)
    assert (tmp_path / "waiting").read_text() == "stopped\n"
    assert "went on" not in printed
    if stopped_by == "the user":
        assert running.returncode == 130
    else:
        assert running.returncode == 7
        lines = printed.splitlines()
        assert lines[0] == "rank 1: what went wrong"
        assert lines[1].startswith("one of 2 training processes failed (status 7)")


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


def test_the_four_scripts_of_every_data_set(tmp_path):
    """train.sh, evaluate.sh and sweep.sh from the shipped checkpoint; prepare.sh is the build."""
    data = few_rows(tmp_path / "data")
    init = EMOJI.parent / "checkpoints" / "ofa_nano_caption.pt"
    small = {"DATA": str(data), "BATCH": "4", "UPDATES": "2", "SAVE_UPDATES": "1"}
    script("train.sh", "caption", init, tmp_path / "mue", **small)
    kept = sorted(path.name for path in (tmp_path / "mue").glob("checkpoint_*.pt"))
    assert kept == ["checkpoint_1_1.pt", "checkpoint_best.pt", "checkpoint_last.pt"]

    checkpoint, plain = tmp_path / "mue" / "checkpoint_last.pt", ["--coco-tokenizer", "plain"]
    given = ("caption", checkpoint, "test_artist")
    exits = ["--exit-policy", "similarity", "--exit-image-threshold", "0.2"]  # of split models
    script("evaluate.sh", *given, tmp_path / "ev", *exits, *plain, **small)
    run = read_run(tmp_path / "ev")
    assert run["sentences"] == 8 and run["image_layers"] < 6

    grid, out = tmp_path / "grid.json", tmp_path / "curve.csv"
    grid.write_text('[{}, {"exit_decoder_threshold": 0.5, "exit_schedule": "static"}]')
    script("sweep.sh", *given, grid, out, **small)
    assert len(out.read_text().splitlines()) == 3
    assert out.with_suffix(".png").exists() and out.with_suffix(".svg").exists()
    script("sweep.sh", *given, grid, tmp_path / "none.csv", **small, CURVE="")
    script("sweep.sh", *given, grid, tmp_path / "none.csv", "--time-only", **small)
    assert not list(tmp_path.glob("none.*g"))

    assert "--compact DIR" in script("prepare.sh", tmp_path / "build", "--help")

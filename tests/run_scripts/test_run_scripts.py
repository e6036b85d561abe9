"""The emoji scripts through the real commands, on a few rows of the built-in data."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import script_runs
from helpers.emoji_scripts import PLAIN, few_rows, script
from helpers.paths import ROOT

from ofa_exit.evaluation.figures.table import read_run

calls = script_runs.calls

# A stand-in for fairseq-train whose second process fails, or waits as the first one does. Each
# process records that it runs, and that it was stopped.
ONE_FAILS = """\
#!/usr/bin/env bash
while [ "$1" != --distributed-rank ]; do shift; done
trap 'kill %1; echo > stopped$2; exit 1' TERM
echo > running$2
if [ "$2" = 1 ] && [ -n "$FAILS" ]; then
  for _ in {1..6000}; do [ ! -e running0 ] || break; sleep 0.1; done
  echo "rank 1: what went wrong" >&2
  exit 7
fi
sleep 3600 &
wait
"""


def wait_for(files: list[Path], seconds: float = 600) -> None:
    """Wait until all files exist; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, [file.name for file in files if not file.exists()]
        time.sleep(0.1)


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_training_processes_end_together(number, tmp_path):
    """If one of them fails, or the script is interrupted or terminated."""
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    for name, text in (("fairseq-train", ONE_FAILS), ("python", python)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    fails = {} if number else {"FAILS": "1"}
    running = subprocess.Popen(
        ["bash", "-c", f"source {ROOT}/run_scripts/common.sh; train data; echo went on"],
        env={**os.environ, "BIN": str(tmp_path), "DEVICE": "cpu", "PROCESSES": "2", **fails},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Jobs in the background ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if number:
        wait_for([tmp_path / "running0", tmp_path / "running1"])
        running.send_signal(number)
    printed, _ = running.communicate(timeout=600)
    wait_for([tmp_path / f"stopped{rank}" for rank in ((0, 1) if number else (0,))])
    assert "went on" not in printed
    if number:
        assert running.returncode in (-number, 128 + number)
    else:
        assert running.returncode != 0 and not (tmp_path / "stopped1").exists()
        assert "rank 1: what went wrong" in printed and "exitcode  : 7" in printed


def test_pretrain_train_evaluate_and_sweep(tmp_path):
    """Captions: from random weights in two processes to MuE, its generation and its curve."""
    small = {"DATA": str(few_rows(tmp_path / "data")), "BATCH": "4"}
    script("pretrain.sh", "caption", tmp_path / "plain", 1, **small, PROCESSES="2")
    plain = tmp_path / "plain" / "checkpoint_last.pt"
    script("train.sh", "caption", plain, tmp_path / "mue", **small, UPDATES="2", SAVE_UPDATES="1")
    saved = sorted(path.name for path in (tmp_path / "mue").glob("checkpoint_*.pt"))
    assert saved == ["checkpoint_1_1.pt", "checkpoint_best.pt", "checkpoint_last.pt"]

    given = ("caption", tmp_path / "mue" / "checkpoint_last.pt", "test_artist")
    exits = ["--exit-policy", "similarity", "--exit-image-threshold", "0.2"]  # of split models
    evaluate = ("evaluate.sh", *given, tmp_path / "exits", *exits, "--coco-tokenizer", "plain")
    script(*evaluate, **small)
    run = read_run(tmp_path / "exits")
    assert run["sentences"] == 8 and run["image_layers"] < 6
    assert f"{tmp_path / 'exits'} exists" in script(*evaluate, **small)

    grid, out = tmp_path / "grid.json", tmp_path / "curve.csv"
    grid.write_text('[{}, {"exit_decoder_threshold": 0.5, "exit_schedule": "static"}]')
    script("sweep.sh", *given, grid, out, **small)
    with out.open() as file:
        full, _ = csv.DictReader(file)
    assert (full["sentences"], full["image_layers"]) == ("8", "6")
    assert out.with_suffix(".png").exists() and out.with_suffix(".svg").exists()


def test_a_baseline_of_fewer_layers(tmp_path):
    """Layers are those of the checkpoint; the sweep compares with the shipped 6 + 6."""
    small = {"DATA": str(few_rows(tmp_path / "data")), "BATCH": "4"}
    few = ("--encoder-layers", "4", "--decoder-layers", "3")
    script("pretrain.sh", "caption", tmp_path / "plain", 1, *few, **small)
    script("finetune.sh", "caption", "plain", tmp_path / "plain" / "checkpoint_last.pt",
           tmp_path / "ft", 1, **small)  # fmt: skip
    grid, out = tmp_path / "grid.json", tmp_path / "curve.csv"
    grid.write_text("[{}]")
    script("sweep.sh", "caption", tmp_path / "ft" / "checkpoint_last.pt", "test_artist", grid, out,
           "--reference", PLAIN, "--reference-layers", "6,6", **small)  # fmt: skip
    with out.open() as file:
        full, reference = csv.DictReader(file)
    layers = ("encoder_layers_full", "decoder_layers_full")
    assert [full[name] for name in layers] == ["4", "3"]
    assert [reference[name] for name in layers] == ["6", "6"]
    assert float(full["expected_time_reduction"]) == pytest.approx(1 - (4 / 6 + 3 / 6) / 2)
    assert float(full["gflops_per_sentence"]) > 0


@pytest.mark.parametrize(
    "backend", ["pytorch_ddp", pytest.param("legacy_ddp", marks=pytest.mark.slow)]
)
def test_entailment_from_a_caption_checkpoint(backend, tmp_path):
    small = {"DATA": str(few_rows(tmp_path / "data")), "BATCH": "4"}
    more = {"PROCESSES": "2", "DDP": backend, "INIT": str(PLAIN)}
    script("pretrain.sh", "entailment", tmp_path / "plain", 1, **small, **more)
    checkpoint = tmp_path / "plain" / "checkpoint_last.pt"
    exits = ["--exit-policy", "similarity", "--exit-encoder-threshold", "0.2"]
    given = ("entailment", checkpoint, "test_artist", tmp_path / "out", *exits)
    script("generate.sh", *given, **small)
    run = read_run(tmp_path / "out")
    assert run["sentences"] == 8 and run["image_layers"] < 6 and 0 <= run["accuracy"] <= 100


def test_a_sweep_is_drawn_on_request(calls, tmp_path):
    commands, read = calls
    grid, out = tmp_path / "grid.json", tmp_path / "curve.csv"
    grid.write_text("[{}]")
    sweep = ("sweep.sh", "caption", "a.pt", "valid", grid, out)
    script(*sweep, BIN=commands)
    assert [call[0] for call in read()] == ["sweep", "plot"]
    script(*sweep, BIN=commands, CURVE="")
    assert [call[0] for call in read()] == ["sweep"]
    script(*sweep, "--time-only", BIN=commands)
    assert [call[0] for call in read()] == ["sweep"]


def test_the_data_is_built_by_a_script(tmp_path):
    assert "--compact DIR" in script("prepare.sh", tmp_path / "build", "--help")

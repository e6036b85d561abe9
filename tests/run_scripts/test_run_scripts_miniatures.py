"""The scripts of the published data sets on miniatures in the official formats (slow)."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import prepare_samples as samples
from helpers import task_files as files
from helpers.script_runs import BLIPEE, BLIPEE_GRID, QUALITY, ROOT, SMALL, TASKS, TRAIN_ROWS, run


def summary(printed: str) -> dict[str, float]:
    """Return the exit summary without its times."""
    (line,) = (line for line in printed.splitlines() if line.startswith("Exit summary: "))
    found = json.loads(line.removeprefix("Exit summary: "))
    return {key: value for key, value in found.items() if "seconds" not in key}


def start(data: Path, folders: set[Path], tmp_path: Path) -> Path:
    """Train a checkpoint to start from; write its dictionary of all words in ``folders``."""
    texts = [line for folder in folders for file in folder.glob("*.tsv")
             for line in file.read_text().lower().replace("&&", " ").split("\t")]  # fmt: skip
    words = {part.rpartition("|!+")[2].strip('?"') for text in texts for part in text.split()}
    extra = ("?", "yes", "no", "maybe", "answer", *map(str, range(120)))
    words |= {*files.WORDS, *extra, *(f"{word}?" for word in words if len(word) < 20)}
    files.write_dictionary(data, tuple(sorted(word for word in words if 0 < len(word) < 40)))
    return files.train(
        *("mue_caption", files.caption_folder(tmp_path / "c"), tmp_path / "init"),
        *("--bpe-dir", str(data)),
        updates=1,
    )


def miniature(name: str, tmp_path: Path) -> tuple[Path, Path]:
    """Prepare tiny official files; return the folders to generate from and to train on.

    NoCaps trains on COCO.
    """
    root, data = tmp_path / "release", tmp_path / "data"
    root.mkdir()
    getattr(samples, name)(root)
    few = ["--answers", "9", "--min-occurrences", "1"] if name == "vqa" else []
    run(f"{name}/prepare.sh", root, data, *few)
    if name != "nocaps":
        return data, data
    samples.coco(tmp_path / "coco_release")
    run("coco/prepare.sh", tmp_path / "coco_release", tmp_path / "coco")
    return data, tmp_path / "coco"


def evaluated(name: str, data: Path, checkpoint: Path, out: Path, *exits: str, **environment: str):
    """Run evaluate.sh and sweep.sh; return what was printed and the sweep's lines."""
    plain = ["--coco-tokenizer", "plain"] if TASKS[name] == "mue_caption" else []
    split = {"gqa": "testdev", "snli_ve": "test", "coco": "test", "rsicd": "test"}
    split = split.get(name, "valid")
    given = (data, checkpoint, split)
    printed = run(f"{name}/evaluate.sh", *given, out / "ev", *SMALL, *plain, *exits, **environment)
    (results,) = (out / "ev").glob("generate-*.txt")
    assert f"Generate {split} with" in results.read_text()
    run(f"{name}/sweep.sh", *given, out / "sw", *SMALL, *plain, **environment)
    with (out / "sw.csv").open() as file:
        lines = list(csv.DictReader(file))
    kind = "caption" if TASKS[name] == "mue_caption" else "answer"
    grid = Path(environment.get("GRID", ROOT / "run_scripts" / "grids" / f"{kind}.json"))
    assert (
        len(lines) == len(json.loads(grid.read_text()))
        and QUALITY.get(name, "accuracy") in lines[0]
    )
    assert (out / "sw.png").exists() and (out / "sw.svg").exists()
    return printed, lines


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_miniature_is_prepared_trained_evaluated_and_swept(name, tmp_path, monkeypatch):
    """From the official files to curves."""
    monkeypatch.setattr("sys.argv", ["test"])
    data, train = miniature(name, tmp_path)
    init = start(data, {data, train}, tmp_path)
    environment = {"ARCH": "ofa_nano", "BPE_DIR": str(data), "EPOCHS": "1", "MICRO": "2"}
    run(f"{name}/train.sh", train, init, tmp_path / "out", *SMALL, *files.NANO[2:],
        BATCH="2", **environment)  # fmt: skip
    checkpoint = tmp_path / "out" / "checkpoint_best.pt"
    exits = ["--exit-policy", "similarity"]
    printed, _ = evaluated(name, data, checkpoint, tmp_path, *exits, **environment)
    assert "Exit summary" in printed
    split = next((tmp_path / "ev").glob("generate-*.txt")).stem.removeprefix("generate-")
    plain = ["--coco-tokenizer", "plain"] if TASKS[name] == "mue_caption" else []
    same = (data, checkpoint, split, tmp_path / "ev", *SMALL, *plain, *exits)
    assert f"{split} in {tmp_path}" in run(f"{name}/evaluate.sh", *same, **environment)


def more_images(path: Path, times: int) -> None:
    """Repeat a file's rows as those of other images."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text(
        "".join(
            "\t".join([line[0], f"{line[1]}{copy}", *line[2:]]) + "\n"
            for copy in range(times)
            for line in lines
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BLIPEE, "nocaps"])
def test_exits_of_a_miniature_are_trained_evaluated_and_swept(name, tmp_path, monkeypatch):
    """BLIPEE from the official files to curves; with the backbone's stage if the paper has it."""
    monkeypatch.setattr("sys.argv", ["test"])
    data, train = miniature(name, tmp_path)
    init = start(data, {data, train}, tmp_path)
    if name not in TRAIN_ROWS:
        more_images(train / "valid.tsv", 2)
    environment = {"ARCH": "ofa_nano", "BPE_DIR": str(data), "EPOCHS": "1", "MICRO": "2"}
    out = tmp_path / "out"
    printed = run(f"{name}/train_blipee.sh", train, init, out, *SMALL, *files.NANO[2:],
                  BATCH="2", BACKBONE_EPOCHS="1", **environment)  # fmt: skip
    assert "the backbone is frozen" in printed
    mode = BLIPEE.get(name, "supervised")
    assert (out / "backbone").exists() == (mode == "supervised")
    checkpoint = out / "exits" / "checkpoint_last.pt"
    trained = torch.load(checkpoint, weights_only=True)["model"]
    before = out / "backbone" / "checkpoint_best.pt" if mode == "supervised" else init
    backbone = torch.load(before, weights_only=True)["model"]
    assert all(torch.equal(value, trained[key]) for key, value in backbone.items())
    assert {key.split(".")[2] for key in trained if key.startswith("decoder.exits.")} == set("1235")
    exits = ["--exit-policy", "confidence", "--exit-alpha", "0.1"]
    printed, lines = evaluated(name, data, checkpoint, tmp_path, *exits,
                               **environment, **BLIPEE_GRID)  # fmt: skip
    assert "parameter_speedup" in printed
    assert float(lines[0]["decoder_layers"]) == float(lines[0]["decoder_layers_full"])


# Kills a training, and the script that runs it, when the checkpoint of update 2 has been saved.
DIE_AT_UPDATE_2 = """
import logging, os, signal

class Killer(logging.Handler):
    def emit(self, record):
        if "Saved checkpoint" in record.getMessage() and "@ 2 updates" in record.getMessage():
            os.killpg(os.getpgrp(), signal.SIGKILL)

logging.getLogger("fairseq.checkpoint_utils").addHandler(Killer())
"""


@pytest.mark.slow
def test_a_killed_training_resumes_within_its_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    data, _ = miniature("coco", tmp_path)
    init = start(data, {data}, tmp_path)
    more_images(data / "train.tsv", 4)  # 12 rows: 6 updates
    environment = {"ARCH": "ofa_nano", "BPE_DIR": str(data), "EPOCHS": "1", "MICRO": "2"}
    environment |= {"BATCH": "2", "SAVE_UPDATES": "2"}
    more = [*SMALL, *files.NANO[2:], "--log-format", "simple", "--log-interval", "1"]
    given = ("coco/train.sh", data, init)
    run(*given, tmp_path / "whole", *more, **environment)

    out = tmp_path / "out"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DIE_AT_UPDATE_2)
    killed = subprocess.run(
        ["bash", str(ROOT / "run_scripts" / given[0]), *map(str, (*given[1:], out, *more))],
        env={**os.environ, "BIN": os.path.dirname(sys.executable), "DEVICE": "cpu",
             "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "site"), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        timeout=3600,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stdout[-3000:]
    assert "done training" not in killed.stdout
    printed = run(*given, out, *more, **environment)
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch 1 @ 2 updates\)", printed)
    assert len(list(out.glob("checkpoint_1_*.pt"))) == 1  # only the last is kept
    states = [torch.load(folder / "checkpoint_last.pt", weights_only=False)
              for folder in (tmp_path / "whole", out)]  # fmt: skip
    assert [state["optimizer_history"][-1]["num_updates"] for state in states] == [6, 6]
    for key, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][key], value, msg=key)


@pytest.mark.slow
def test_a_miniature_through_the_cider_stage_and_in_shards(tmp_path, monkeypatch):
    """From COCO's official files; the merged shards of an evaluation equal a single run."""
    monkeypatch.setattr("sys.argv", ["test"])
    root, data, out = tmp_path / "release", tmp_path / "data", tmp_path / "out"
    samples.coco(root)
    run("coco/prepare.sh", root, data)
    init = start(data, {data}, tmp_path)
    environment = {"ARCH": "ofa_nano", "BPE_DIR": str(data), "EPOCHS": "2", "MICRO": "1"}
    more = [*SMALL, *files.NANO[2:], "--log-format", "json", "--log-interval", "1"]
    printed = run("coco/train_cider.sh", data, init, out, *more, BATCH="2", **environment)
    rewards = re.findall(r'"train_reward": "([^"]+)"', printed)
    assert len(rewards) == 2 and all(float(reward) >= 0 for reward in rewards)
    assert "valid_cider" in printed

    # Two rows, in batches of one.
    (data / "two.tsv").write_bytes((data / "train_stage2.tsv").read_bytes())
    shared = ["coco/evaluate.sh", data, out / "checkpoint_best.pt", "two"]
    options = [*SMALL, "--coco-tokenizer", "plain", "--exit-policy", "similarity"]
    whole = run(*shared, tmp_path / "whole", *options, **environment)
    environment["SHARDS"] = "2"
    for shard in "01":
        run(*shared, tmp_path / "ev", *options, **environment, SHARD=shard)
    merged = run(*shared, tmp_path / "ev", "--coco-tokenizer", "plain", **environment)
    assert summary(merged) == pytest.approx(summary(whole), rel=1e-12)
    name = "generate-two.txt"
    assert (tmp_path / "ev" / name).read_text() == (tmp_path / "whole" / name).read_text()
    again = run(*shared, tmp_path / "ev", "--coco-tokenizer", "plain", **environment)
    assert f"two in {tmp_path}" in again

"""The scripts of the published data sets: the commands they run, and what they reject."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fairseq import options
from helpers import script_runs
from helpers.script_runs import (
    BLIPEE,
    BLIPEE_GRID,
    ROOT,
    SHARED,
    TASKS,
    TRAIN_ROWS,
    failing,
    run,
)

from ofa_exit.data.row_index import index_path

calls = script_runs.calls


def parsed(parser, arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fairseq", *arguments])
    return options.parse_args_and_arch(parser(), arguments)


@pytest.mark.parametrize("name", TASKS)
def test_scripts_parse_with_fairseq(name, calls, tmp_path, monkeypatch):
    commands, read = calls
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.tsv").write_text("x\n" * 130)
    environment = {"BIN": commands, "BPE_DIR": "/bpe", "PROCESSES": "1"}
    run(f"{name}/train.sh", data, "init.pt", tmp_path / "out", "--seed", 3, **environment)
    (arguments,) = read()
    args = parsed(options.get_training_parser, arguments, monkeypatch)
    assert (args.task, args.arch, args.criterion) == (TASKS[name], "ofa_base", "mue_loss")
    assert (args.lr, args.max_epoch, args.weight_decay, args.seed) == ([3e-5], 5, 0.01, 3)
    assert args.batch_size * args.update_freq[0] == 64
    assert int(args.total_num_update) == 15  # 130 rows, 5 epochs
    assert args.split_modalities and args.finetune_from_model == "init.pt"
    metric = {"mue_snli_ve": "acc", "mue_caption": "cider", "mue_visdial": "mrr"}
    assert args.best_checkpoint_metric == metric.get(args.task, "vqa_acc")
    assert args.maximize_best_checkpoint_metric
    assert (args.save_interval_updates, args.keep_interval_updates) == (2000, 1)
    if name in ("vqa", "vqa_rad"):
        assert args.answers == f"{data}/answers.txt"

    exits = ["--exit-policy", "similarity"]
    run(f"{name}/evaluate.sh", data, "a.pt", "valid", tmp_path / "ev", *exits, **environment)
    (arguments,) = read()
    args = parsed(options.get_generation_parser, arguments, monkeypatch)
    assert (args.task, args.path, args.gen_subset) == (TASKS[name], "a.pt", "valid")
    assert args.exit_policy == "similarity" and args.patch_image_size == 480
    assert args.scoring != "bleu"

    run(f"{name}/sweep.sh", data, "a.pt", "valid", tmp_path / "sw", **environment)
    (verb, grid, out, *arguments), plots = read()
    assert (verb, out) == ("sweep", f"{tmp_path}/sw.csv")
    assert json.loads(Path(grid).read_text())[:2] == [{}, {"exit_policy": "similarity"}]
    assert parsed(options.get_generation_parser, arguments, monkeypatch).task == TASKS[name]
    assert plots[:2] == ["plot", f"{tmp_path}/sw.csv"]
    assert "--axes" not in plots
    run(f"{name}/sweep.sh", data, "a.pt", "valid", tmp_path / "sw", **environment, **BLIPEE_GRID)
    (_, grid, *_), plots = read()
    assert [one.get("exit_alpha") for one in json.loads(Path(grid).read_text())] == [
        *(None, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    ]
    assert plots[plots.index("--axes") + 1].startswith("parameter_speedup,")
    run(f"{name}/sweep.sh", data, "a.pt", "test", tmp_path / "sw", "--time-only", **environment)
    assert len(read()) == 1  # without quality there is nothing to draw


@pytest.mark.parametrize("name", [*BLIPEE, "nocaps"])
def test_blipee_scripts_parse_with_fairseq(name, calls, tmp_path, monkeypatch):
    """BLIPEE's settings (Section 4, Training, and Table 6), through fairseq's parser."""
    commands, read = calls
    data, out = tmp_path / "data", tmp_path / "out"
    rows = out / "rows"
    for folder in (data, rows):
        folder.mkdir(parents=True)
        (folder / "train.tsv").write_text("x\n" * 130)
    if name in TRAIN_ROWS:
        rows = data
        (data / "valid.tsv").write_text("x\n")
    environment = {"BIN": commands, "BPE_DIR": "/bpe", "PROCESSES": "1"}
    run(f"{name}/train_blipee.sh", data, "init.pt", out, "--seed", 3, **environment)
    calls_made = read()
    mode = BLIPEE.get(name, "supervised")
    if name not in TRAIN_ROWS:
        kind = {"mue_caption": "caption", "mue_visdial": "dialogue"}.get(TASKS[name], "question")
        held = ["holdout", kind, f"{data}/valid.tsv", str(rows)]
        assert calls_made.pop(0) == held
    assert len(calls_made) == (2 if mode == "supervised" else 1)
    for arguments in calls_made:
        args = parsed(options.get_training_parser, arguments, monkeypatch)
        assert args.data == f"{rows}/train.tsv,{rows}/valid.tsv"
        assert (args.task, args.arch, args.seed) == (TASKS[name], "ofa_base", 3)
        assert args.lr == [1e-5] and args.lr_decay == 0.5 and args.warmup_updates == 500
        assert args.lr_scheduler == "step_from_start"
        assert args.lr_deacy_period == 27  # 130 rows, batches of 16, 3 epochs
        assert args.adam_betas == "(0.9, 0.999)" and args.batch_size * args.update_freq[0] == 16
        assert args.save_interval_updates == 2000 and not args.split_modalities
        if arguments is calls_made[-1]:
            assert (args.criterion, args.max_epoch) == ("blipee_adversarial", 3)
            assert (args.blipee_mode, args.exit_layers) == (mode, "1,2,3,5")
            before = f"{out}/backbone/checkpoint_best.pt" if mode == "supervised" else "init.pt"
            assert args.finetune_from_model == before
            assert args.save_dir == f"{out}/exits" and args.fp16_no_flatten_grads
            assert args.best_checkpoint_metric == "loss"
            assert not args.maximize_best_checkpoint_metric
        else:
            assert (args.criterion, args.layer_weights, args.max_epoch) == ("mue_loss", "last", 10)
            assert args.finetune_from_model == "init.pt" and args.save_dir == f"{out}/backbone"
            assert args.label_smoothing == 0 and args.maximize_best_checkpoint_metric


def test_rows_are_counted_by_the_index(tmp_path):
    (tmp_path / "train.tsv").write_text("x\n" * 130)
    command = f"source {ROOT}/run_scripts/benchmark.sh; rows {tmp_path}/train.tsv"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "BIN": os.path.dirname(sys.executable), "DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "130\n"), done.stderr
    assert index_path(tmp_path / "train.tsv").exists()


def test_stages_rows_and_exits_can_be_chosen(calls, tmp_path):
    commands, read = calls
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("train", "valid"):
        (rows / f"{name}.tsv").write_text("x\n" * 130)
    given = ("gqa/train_blipee.sh", tmp_path, "init.pt", tmp_path / "out")
    environment = {"BIN": commands, "BPE_DIR": "/bpe", "ROWS": str(rows)}
    run(*given, **environment, MODE="supervised", BACKBONE_EPOCHS="0", EPOCHS="1", EXITS="2")
    (arguments,) = read()  # no rows to split and no backbone to train

    def value(option: str) -> str:
        return arguments[arguments.index(option) + 1]

    assert arguments[0] == f"{rows}/train.tsv,{rows}/valid.tsv"
    assert value("--finetune-from-model") == "init.pt" and value("--max-epoch") == "1"
    assert value("--exit-layers") == "2" and value("--blipee-mode") == "supervised"


def test_split_rows_belong_to_the_data(calls, tmp_path):
    commands, read = calls
    data, rows = tmp_path / "data", tmp_path / "out" / "rows"
    for folder in (data, rows):
        folder.mkdir(parents=True)
        for name in ("train", "valid"):
            (folder / f"{name}.tsv").write_text("x\n" * 130)
    given = ("coco/train_blipee.sh", data, "init.pt", rows.parent)
    environment = {"BIN": commands, "BPE_DIR": "/bpe"}
    assert f"{data}/valid.tsv" in failing(*given, **environment)
    (rows / "valid.tsv").unlink()  # as after a killed split: it is made again
    run(*given, **environment)
    assert any(call[0] == "holdout" for call in read())
    (rows / "valid.tsv").write_text("x\n" * 130)
    run(*given, **environment)
    (data / "valid.tsv").write_text("x\n" * 131)
    assert f"{data}/valid.tsv" in failing(*given, **environment)


def test_every_data_set_has_the_same_scripts():
    folders = {path.parent.name for path in (ROOT / "run_scripts").glob("*/*.sh")}
    assert folders - {"methods"} == {*TASKS, "emoji", "data_set"}
    for name in folders - {"methods"}:
        there = {path.name for path in (ROOT / "run_scripts" / name).glob("*.sh")}
        assert there >= {"prepare.sh", "train.sh", "evaluate.sh", "sweep.sh"}, name
    assert {path.parent.name for path in (ROOT / "run_scripts").glob("*/train_blipee.sh")} == {
        *BLIPEE,
        "nocaps",
        "data_set",
    }


@pytest.mark.parametrize("name", [name for name in TASKS if name not in SHARED])
def test_headers_have_the_papers_numbers(name):
    for path in (ROOT / "run_scripts" / name).glob("*.sh"):
        if path.name in ("prepare.sh", "options.sh"):
            continue
        text = path.read_text()
        assert text.startswith("#!/usr/bin/env bash\n") and os.access(path, os.X_OK), path
        assert "Not yet run on the real data." in text, path
        method = r"BLIPEE" if path.name == "train_blipee.sh" else r"MuE"
        number = rf"# {method}, Table \d|# {method}: .* is not in the paper"
        assert re.search(number, text), path
        if path.name == "train_blipee.sh":
            assert not re.search(r"^# MuE", text, re.MULTILINE), path
        if path.name == "train.sh":
            assert not re.search(r"^# BLIPEE", text, re.MULTILINE), path


def test_the_cider_stage_parses_with_fairseq(calls, tmp_path, monkeypatch):
    commands, read = calls
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "train_stage2.tsv").write_text("x\n" * 130)
    run("coco/train_cider.sh", data, "init.pt", out, "--seed", 3, BIN=commands, BPE_DIR="/bpe")
    counted, arguments = read()
    frequencies = f"{out}/document_frequencies.npz"
    assert counted == ["document-frequencies", f"{data}/train_stage2.tsv", frequencies]
    args = parsed(options.get_training_parser, arguments, monkeypatch)
    assert args.data == f"{data}/train_stage2.tsv,{data}/valid.tsv"
    assert (args.task, args.arch, args.criterion) == ("mue_caption", "ofa_base", "mue_scst")
    assert (args.lr, args.max_epoch, args.weight_decay, args.seed) == ([1e-5], 3, 0.01, 3)
    assert args.batch_size * args.update_freq[0] == 64
    assert int(args.total_num_update) == 9  # 130 rows, 3 epochs
    assert (args.cider_frequencies, args.scst_baseline) == (frequencies, "mean")
    assert json.loads(args.scst_args)["sampling"] is False
    assert args.dropout == 0 == args.encoder_drop_path_rate == args.decoder_drop_path_rate
    assert args.freeze_resnet and args.split_modalities
    assert args.best_checkpoint_metric == "cider" and args.maximize_best_checkpoint_metric

    (tmp_path / "made.npz").write_bytes(b"")
    made = {"FREQUENCIES": str(tmp_path / "made.npz"), "EPOCHS": "1", "LR": "2e-5"}
    run("coco/train_cider.sh", data, "init.pt", out, BIN=commands, BPE_DIR="/bpe", **made)
    (arguments,) = read()
    args = parsed(options.get_training_parser, arguments, monkeypatch)
    assert (args.cider_frequencies, args.lr, args.max_epoch) == (made["FREQUENCIES"], [2e-5], 1)


@pytest.mark.parametrize("name", ["vqa", "gqa", "vizwiz", "visdial"])
def test_hidden_answers_are_not_scored(name, calls, tmp_path):
    commands, read = calls
    printed = run(f"{name}/evaluate.sh", tmp_path, "a.pt", "test", tmp_path / "o", BIN=commands)
    assert "ofa-exit submit" in printed
    assert "--scoring" not in read()[0]


def test_updates_have_batch_samples_with_any_number_of_processes(calls, tmp_path):
    commands, read = calls
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.tsv").write_text("x\n" * 130)
    given = (data, "init.pt", tmp_path / "out")
    run("coco/train.sh", *given, BIN=commands, WORLD_SIZE="16", RANK="0", BPE_DIR="/bpe")
    (arguments,) = read()
    assert arguments[arguments.index("--batch-size") + 1] == "4"
    assert arguments[arguments.index("--update-freq") + 1] == "1"
    said = failing("coco/train.sh", *given, BIN=commands, WORLD_SIZE="3", RANK="0", BPE_DIR="/bpe")
    assert re.search(r"BATCH=64\b.*\b3 processes", said)
    said = failing("coco/train.sh", *given, BIN=commands, SLURM_STEP_NUM_TASKS="2", BPE_DIR="/bpe")
    assert "PORT" in said


def test_a_finished_generation_is_kept_only_for_the_same_request(calls, tmp_path):
    commands, read = calls
    data, out, environment = tmp_path / "data", tmp_path / "ev", {"BIN": commands, "BPE_DIR": "/b"}
    data.mkdir()
    ask = ("coco/evaluate.sh", data, "a.pt")
    run(*ask, "valid", out, **environment)
    read()
    (out / "generate-valid.txt").write_text("Generate valid with beam=5: CIDEr\n")
    assert "valid in" in run(*ask, "valid", out, **environment)
    said = failing(*ask, "valid", out, "--exit-policy", "similarity", **environment)
    assert str(out) in said
    held_out = ("coco/evaluate.sh", tmp_path, "a.pt", "valid", out)
    assert str(out) in failing(*held_out, **environment)
    run(*ask, "test", out, **environment)  # another split
    assert len(read()) == 1
    (data / "valid.tsv").write_text("a row\n")
    assert str(out) in failing(*ask, "valid", out, **environment)


def test_shards_of_two_splits_have_their_own_folders(calls, tmp_path):
    commands, read = calls
    out, environment = tmp_path / "ev", {"BIN": commands, "BPE_DIR": "/b", "SHARDS": "2"}
    for split in ("valid", "test"):
        ask = ("coco/evaluate.sh", tmp_path, "a.pt", split, out)
        run(*ask, **environment, SHARD="1")
        (arguments,) = read()
        assert arguments[arguments.index("--results-path") + 1] == f"{out}/{split}-shard1"
        run(*ask, **environment)
        (arguments,) = read()
        assert arguments[:4] == [
            *("merge", str(out)),
            *(f"{out}/{split}-shard{number}" for number in range(2)),
        ]
        trace = ("--exit-trace", tmp_path / "trace.jsonl")
        assert "--exit-trace" in failing(*ask, *trace, **environment, SHARD="1")
        own = ("--exit-trace", out / f"{split}-shard1" / "trace.jsonl")
        run(*ask, *own, **environment, SHARD="1")
        read()


def test_a_training_resumes_only_with_the_same_settings(calls, tmp_path):
    commands, _ = calls
    data, out, environment = tmp_path / "data", tmp_path / "out", {"BIN": commands, "BPE_DIR": "/b"}
    data.mkdir()
    (data / "train.tsv").write_text("a row\n")
    train = ("coco/train.sh", data, "a.pt", out)
    run(*train, **environment)
    run(*train, **environment)  # no checkpoint yet
    (out / "checkpoint_last.pt").touch()
    run(*train, EPOCHS="6", **environment)
    for other in ({"LR": "1e-4"}, {"BATCH": "32"}, {"ARCH": "ofa_tiny"}, {"BPE_DIR": "/other"}):
        assert str(out) in failing(*train, **{**environment, **other})
    assert str(out) in failing("coco/train.sh", data, "b.pt", out, **environment)
    (data / "train.tsv").write_text("another row\n")
    assert str(out) in failing(*train, **environment)
    assert "prepare.sh" in failing("coco/train.sh", tmp_path, "a.pt", out, **environment)

"""Variants of training: MuE, its ablations and plain OFA, in the scripts of every data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fairseq import options
from helpers import script_runs
from helpers.script_runs import BLIPEE_GRID, TASKS, failing, run

calls = script_runs.calls

# Whether a variant splits the encoder, and its --layer-weights.
VARIANTS = {
    "plain": (False, "last"),
    "mue": (True, "uniform"),
    "no_split": (False, "uniform"),
    "no_layer_loss": (True, "last"),
}


def parsed(arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fairseq-train", *arguments])
    return options.parse_args_and_arch(options.get_training_parser(), arguments)


def folder_of_rows(folder: Path) -> Path:
    folder.mkdir()
    for name in ("train", "train_stage2"):
        (folder / f"{name}.tsv").write_text("x\n" * 130)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TASKS)
def test_variants_of_training(name, variant, calls, tmp_path, monkeypatch):
    commands, read = calls
    data = folder_of_rows(tmp_path / "data")
    environment = {"BIN": commands, "BPE_DIR": "/bpe", "VARIANT": variant, "ARCH": "ofa_tiny"}
    stages = ["train.sh", *(["train_cider.sh"] if name == "coco" else [])]
    for script in stages:
        run(f"{name}/{script}", data, "init.pt", tmp_path / script, **environment)
        args = parsed(read()[-1], monkeypatch)
        assert (args.split_modalities, args.layer_weights) == VARIANTS[variant]
        assert (args.arch, args.encoder_layers, args.encoder_embed_dim) == ("ofa_tiny", 4, 256)


@pytest.mark.parametrize(
    ("name", "lr", "batch", "smoothing", "worst"),
    [
        ("coco", 1e-5, 128, 0.1, (0.2, 6000)),
        ("snli_ve", 5e-5, 256, 0, (0, 0)),
        ("vqa", 3e-5, 64, 0.1, (0, 0)),
    ],
)
def test_plain_training_has_the_settings_of_ofa(
    name, lr, batch, smoothing, worst, calls, tmp_path, monkeypatch
):
    commands, read = calls
    data = folder_of_rows(tmp_path / "data")
    environment = {"BIN": commands, "BPE_DIR": "/bpe", "VARIANT": "plain"}
    run(f"{name}/train.sh", data, "init.pt", tmp_path / "out", **environment)
    args = parsed(read()[-1], monkeypatch)
    assert (args.lr, args.max_epoch, args.label_smoothing) == ([lr], 5, smoothing)
    assert args.batch_size * args.update_freq[0] == batch
    assert (args.drop_worst_ratio, args.drop_worst_after) == worst
    own = {"BATCH": "32", "LR": "1e-3"}
    run(f"{name}/train.sh", data, "init.pt", tmp_path / "own", **environment, **own)
    args = parsed(read()[-1], monkeypatch)
    assert (args.lr, args.batch_size * args.update_freq[0]) == ([1e-3], 32)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sweeps_of_variants_have_thresholds_of_their_encoder(name, variant, calls, tmp_path):
    commands, read = calls
    ask = (f"{name}/sweep.sh", tmp_path, "a.pt", "valid", tmp_path / "sw")
    run(*ask, BIN=commands, VARIANT=variant)
    settings = json.loads(Path(read()[0][1]).read_text())
    assert settings[:2] == [{}, {"exit_policy": "similarity"}]
    of_the_encoder = {key for one in settings[2:] for key in one} - {
        "exit_decoder_threshold", "exit_schedule"
    }  # fmt: skip
    assert of_the_encoder == (
        {"exit_image_threshold", "exit_text_threshold"}
        if VARIANTS[variant][0]
        else {"exit_encoder_threshold"}
    )
    run(*ask, BIN=commands, VARIANT=variant, **BLIPEE_GRID)
    assert read()[0][1] == BLIPEE_GRID["GRID"]


@pytest.mark.parametrize(
    "script", ["coco/train.sh", "coco/train_cider.sh", "nocaps/train.sh", "coco/sweep.sh"]
)
def test_unknown_variants_are_rejected(script, calls, tmp_path):
    commands, _ = calls
    data = folder_of_rows(tmp_path / "data")
    (tmp_path / "made.npz").write_bytes(b"")
    environment = {"BIN": commands, "BPE_DIR": "/b", "FREQUENCIES": str(tmp_path / "made.npz")}
    more = ("out",) if "sweep" in script else ()
    said = failing(script, data, "a.pt", tmp_path / "out", *more, VARIANT="joint", **environment)
    assert said == "unknown variant joint: give plain, mue, no_split or no_layer_loss\n"
    assert not (tmp_path / "calls").exists()  # nothing was started


@pytest.mark.parametrize(
    "given",
    [
        ("finetune.sh", "caption", "joint", "a.pt"),
        ("scst.sh", "joint", "a.pt"),
        ("finetune.sh", "captions", "mue", "a.pt"),
    ],
    ids=" ".join,
)
def test_unknown_tasks_and_variants_start_nothing(given, calls, tmp_path):
    commands, _ = calls
    said = failing(f"emoji/{given[0]}", *given[1:], tmp_path / "out", BIN=commands)
    kind, known = ("variant joint", "plain, mue") if "joint" in given else ("task", "caption or")
    assert said.count("\n") == 1 and f"unknown {kind}" in said and known in said
    assert not (tmp_path / "calls").exists()

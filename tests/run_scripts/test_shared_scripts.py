"""The scripts that data sets share by links: their help, small models, and what is rejected."""

from __future__ import annotations

import os

import pytest
from fairseq import options
from helpers import script_runs
from helpers.script_runs import ROOT, SHARED, TASKS, failing, run

calls = script_runs.calls
SCRIPTS = ("prepare.sh", "train.sh", "train_blipee.sh", "evaluate.sh", "sweep.sh")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "valid", "test", "test_closed", "test_open"):
        (folder / f"{name}.tsv").write_text("x\n" * 130)
    return folder


@pytest.mark.parametrize("name", SHARED)
def test_a_data_set_is_its_options_and_links(name):
    folder = ROOT / "run_scripts" / name
    assert {path.name for path in folder.iterdir() if not path.is_symlink()} == {"options.sh"}
    for script in (*SCRIPTS, *["train_cider.sh"] * (TASKS[name] == "mue_caption")):
        assert os.readlink(folder / script) == f"../data_set/{script}"
        assert os.access(folder / script, os.X_OK)
        printed = run(f"{name}/{script}", "--help")
        assert f"run_scripts/NAME/{script}" in printed
        assert "not in the papers" in printed and "IMAGE_SIZE" in printed


@pytest.mark.parametrize("name", SHARED)
def test_without_a_bpe_the_model_is_small(name, calls, data, tmp_path, monkeypatch):
    commands, read = calls
    more = {"BIN": commands, "IMAGE_SIZE": "96", "AUGMENT": "flips,rotations", "PROCESSES": "1"}
    run(f"{name}/train.sh", data, "none", tmp_path / "out", **more)
    (arguments,) = read()
    monkeypatch.setattr("sys.argv", ["fairseq-train", *arguments])
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    assert (args.task, args.arch) == (TASKS[name], "ofa_nano")
    assert (args.patch_image_size, args.code_dict_size, args.num_bins) == (96, 0, 0)
    assert (args.augment, args.finetune_from_model) == ("flips,rotations", None)
    assert (args.lr, args.max_epoch, args.batch_size) == ([3e-4], 10, 64)
    assert args.bpe_dir == str(data)


def test_the_cider_stage_of_a_small_model(calls, data, tmp_path, monkeypatch):
    commands, read = calls
    (data / "train_stage2.tsv").write_text("x\n" * 130)
    run("rsicd/train_cider.sh", data, "a.pt", tmp_path / "out", BIN=commands, VARIANT="plain")
    counted, arguments = read()
    assert counted[:2] == ["document-frequencies", f"{data}/train_stage2.tsv"]
    monkeypatch.setattr("sys.argv", ["fairseq-train", *arguments])
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    assert (args.criterion, args.arch, args.layer_weights) == ("mue_scst", "ofa_nano", "last")
    assert (args.lr, args.max_epoch, args.freeze_resnet) == ([5e-5], 3, True)
    assert '"max_len_b":20' in args.scst_args and '"max_len_b":20' in args.eval_args


def test_a_training_of_another_image_size_is_not_resumed(calls, data, tmp_path):
    commands, _ = calls
    given = ("rsicd/train.sh", data, "none", tmp_path / "out")
    run(*given, BIN=commands)
    (tmp_path / "out" / "checkpoint_last.pt").touch()
    run(*given, BIN=commands)
    for other in ({"IMAGE_SIZE": "64"}, {"AUGMENT": "flips"}):
        assert "with other settings" in failing(*given, BIN=commands, **other)


@pytest.mark.parametrize("name", SHARED)
def test_a_dictionary_is_made_unless_a_bpe_is_named(name, calls, tmp_path):
    commands, read = calls
    run(f"{name}/prepare.sh", "root", tmp_path / "out", "--skip-missing", BIN=commands)
    plain = ["prepare", name, "root", f"{tmp_path}/out"]
    assert read() == [[*plain, "--skip-missing"]]
    run(f"{name}/prepare.sh", "root", tmp_path / "out", BIN=commands, BPE_DIR="/bpe")
    assert read() == [[*plain, "--dictionary", "none"]]


@pytest.mark.parametrize(
    ("name", "splits"), [("rsicd", ["test"]), ("vqa_rad", ["test", "test_closed", "test_open"])]
)
def test_methods_are_compared_from_random_weights(name, splits, calls, data, tmp_path):
    commands, read = calls
    out = tmp_path / "out"
    run("compare.sh", name, data, "none", out, "plain", "blipee", BIN=commands)
    made = read()
    plain, blipee = (call for call in made if "--criterion" in call)
    assert "--finetune-from-model" not in plain
    start = blipee[blipee.index("--finetune-from-model") + 1]
    assert start == f"{out}/plain@1/training/checkpoint_last.pt"
    swept = [call[call.index("--gen-subset") + 1] for call in made if call[0] == "sweep"]
    assert swept == ["valid", *splits] * 2
    (compared,) = (call for call in made if call[0] == "compare")
    keep = {"rsicd": "0.96", "vqa_rad": "0.99"}[name]
    assert compared[compared.index("--keep") + 1].startswith(keep) and "--paper" not in compared
    error = failing("compare.sh", name, data, "none", out, "plain", BIN=commands, IMAGE_SIZE="64")
    assert "holds a comparison of other settings" in error and "64" in error

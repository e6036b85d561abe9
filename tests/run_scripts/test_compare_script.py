"""compare.sh: what every method trains and sweeps, and what it rejects."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fairseq import options
from helpers import script_runs
from helpers.paths import ROOT
from helpers.script_runs import failing, run

from ofa_exit.cli.grid import check_setting
from ofa_exit.evaluation.figures.families import ORDER

calls = script_runs.calls
METHODS = sorted(path.stem for path in (ROOT / "run_scripts" / "methods").glob("*.sh"))
# Methods with a training of their own, and its criterion.
TRAININGS = {
    "plain": "mue_loss",
    "mue": "mue_loss",
    "self_distil": "mue_loss",
    "deebert": "exit_heads_loss",
    "pabee": "multi_exit_loss",
    "leebert": "leebert_loss",
    "leeblip": "exit_heads_loss",
    "deecap": "deecap_loss",
    "calm_meta": "calm_meta_loss",
    "deed": "multi_exit_loss",
    "blipee": "blipee_adversarial",
    "blipee_distill": "blipee_adversarial",
}


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "init.pt").write_text("x")
    for name in ("train", "valid", "test_artist"):
        (folder / f"caption_{name}.tsv").write_text("x\n" * 130)
    return folder


@pytest.mark.parametrize("method", TRAININGS)
def test_trainings_parse_with_fairseq(method, calls, data, tmp_path, monkeypatch):
    commands, read = calls
    run(
        "compare.sh",
        "emoji/caption",
        data,
        tmp_path / "init.pt",
        tmp_path / "out",
        method,
        BIN=commands,
    )
    trained = [call for call in read() if "--criterion" in call][-1]
    monkeypatch.setattr("sys.argv", ["fairseq-train", *trained])
    args = options.parse_args_and_arch(options.get_training_parser(), trained)
    assert args.criterion == TRAININGS[method]
    assert args.seed == 1
    assert args.update_freq == [1] and args.batch_size == 128


def test_a_method_starts_from_another_ones_training(calls, data, tmp_path):
    commands, read = calls
    out = tmp_path / "out"
    run(
        "compare.sh",
        "emoji/caption",
        data,
        tmp_path / "init.pt",
        out,
        "deebert",
        BIN=commands,
        SEED="2",
    )
    starts = [
        call[call.index("--finetune-from-model") + 1] for call in read() if "--criterion" in call
    ]
    assert starts == [
        str(tmp_path / "init.pt"),
        str(out / "plain@2" / "training" / "checkpoint_last.pt"),
    ]


@pytest.mark.parametrize("kind", ["caption", "entailment"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_grid_of_settings(method, kind, tmp_path):
    """The settings build: options exist and have values that policies take."""
    folder = ROOT / "run_scripts"
    script = f"""
        TINY=tiny.pt MEDIUM=medium.pt; source {folder}/methods/{method}.sh; echo "$RULE" """
    rule = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.strip()
    task = "answer" if kind == "entailment" else kind
    places = [
        folder / "emoji" / kind / "grids" / f"{rule}.json",
        folder / "grids" / f"{task}_{rule}.json",
        folder / "grids" / f"{rule}.json",
    ]
    grid = json.loads(next(place for place in places if place.exists()).read_text())
    assert grid[0] == {}
    for setting in grid:
        check_setting(setting, "grid")


@pytest.mark.parametrize(
    ("arch", "grid"), [("ofa_base", "patience.json"), ("ofa_tiny", "ofa_tiny_patience.json")]
)
def test_small_decoders_have_grids_of_their_own(arch, grid, calls, data, tmp_path):
    commands, read = calls
    for file in data.iterdir():
        file.rename(data / file.name.removeprefix("caption_"))
    arguments = ("compare.sh", "coco", data, tmp_path / "init.pt", tmp_path / "out", "pabee")
    run(*arguments, BIN=commands, ARCH=arch, TEST="test_artist")
    sweeps = [call for call in read() if call[0] == "sweep"]
    assert {call[1] for call in sweeps} == {str(ROOT / "run_scripts" / "grids" / grid)}


def test_all_methods_by_family_and_those_with_a_checkpoint(calls, data, tmp_path):
    commands, read = calls
    tiny = tmp_path / "init.pt"
    arguments = ("compare.sh", "emoji/caption", data, tiny, tmp_path / "out")
    run(*arguments, BIN=commands, TINY=str(tiny))
    swept = [call[call.index("--run") + 1] for call in read() if "valid" in call]
    assert swept == [name for name in ORDER if name != "medium"]


def test_a_stopped_sweep_is_started_by_the_same_command(calls, data, tmp_path):
    """So it resumes from its partial file, as the page says."""
    commands, read = calls
    arguments = ("compare.sh", "emoji/caption", data, tmp_path / "init.pt", tmp_path / "out", "mue")
    sweeps = []
    for _ in range(2):
        run(*arguments, BIN=commands)
        sweeps.append([call for call in read() if call[0] == "sweep"])
    assert sweeps[0] == sweeps[1] and len(sweeps[0]) == 2
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    assert "nothing is kept" not in page and "`SPLIT.partial.jsonl`" in page


def test_calm_has_all_three_confidences():
    """Of one training: softmax difference, largest probability, saturation."""
    folder = ROOT / "run_scripts" / "methods"
    texts = [(folder / f"{n}.sh").read_text() for n in ("calm", "calm_softmax", "calm_saturation")]
    assert all("TRAINED=pabee_shared\n" in text for text in texts)
    assert [text.split("RULE=")[1] for text in texts] == [
        "softmax_diff\n",
        "softmax\n",
        "saturation\n",
    ]


def test_unknown_methods_and_data_sets_are_rejected(data, tmp_path):
    out = tmp_path / "out"
    error = failing("compare.sh", "emoji/caption", data, tmp_path / "init.pt", out, "berxit")
    assert error == f"unknown method berxit: choose from {' '.join(ORDER)}\n"
    assert set(ORDER) == set(METHODS)
    error = failing("compare.sh", "coco2", data, tmp_path / "init.pt", out)
    assert "unknown data set coco2" in error and not out.exists()


def test_missing_rows_and_splits_without_answers_are_rejected_first(data, tmp_path):
    out, init = tmp_path / "out", tmp_path / "init.pt"
    error = failing(
        "compare.sh", "emoji/caption", data, init, out, "plain", TEST="test_combinations"
    )
    assert error.startswith(f"{data}/caption_test_combinations.tsv is missing")
    error = failing("compare.sh", "vqa", data, init, out, "plain")
    assert error.startswith("vqa has no published answers for test")
    error = failing("compare.sh", "emoji/caption", data, init, out, "plain", "tiny")
    assert error == "method tiny needs TINY=…, the pretrained checkpoint of its model\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"BPE_DIR": "other"}, "other/dict.txt (there: "),
        ({"SWEEP_BATCH": "8"}, "batch 8 (there: 32)"),
        ({"DEVICE": "cuda"}, "device cuda (there: cpu)"),
        ({"IMAGE_SIZE": "64"}, "--patch-image-size 64 (there: 128)"),
        ({"LENGTH": "7"}, "--max-len-b 7 (there: 20)"),
    ],
)
def test_sweeps_with_other_options_are_rejected(variables, message, calls, data, tmp_path):
    """What a sweep is given besides its rows: words, batch, device, task and search."""
    commands, _ = calls
    out = tmp_path / "out"
    for file in data.iterdir():
        file.rename(data / file.name.removeprefix("caption_"))
    arguments = ("compare.sh", "rsicd", data, tmp_path / "init.pt", out, "plain")
    run(*arguments, BIN=commands, TEST="test_artist")
    error = failing(*arguments, BIN=commands, TEST="test_artist", **variables)
    assert f"{out} holds a comparison of other settings: " in error and message in error


def test_a_smaller_model_of_another_checkpoint_is_rejected(calls, data, tmp_path):
    """A file of the same path and another content."""
    commands, _ = calls
    tiny = tmp_path / "tiny.pt"
    tiny.write_text("x")
    arguments = ("compare.sh", "emoji/caption", data, tmp_path / "init.pt", tmp_path / "out")
    run(*arguments, "tiny", BIN=commands, TINY=str(tiny))
    tiny.write_text("other")
    error = failing(*arguments, "tiny", BIN=commands, TINY=str(tiny))
    assert f"a training of other settings: {tiny} (another size or date)." in error


def test_a_smaller_model_is_timed_beside_plain(calls, data, tmp_path):
    commands, read = calls
    out, tiny = tmp_path / "out", tmp_path / "init.pt"
    arguments = ("compare.sh", "emoji/caption", data, tiny, out)
    run(*arguments, "plain", "tiny", BIN=commands, TINY=str(tiny))
    assert not any("--reference" in call for call in read())
    (out / "plain@1" / "valid.csv").write_text(
        "run,setting,encoder_layers_full,decoder_layers_full\nplain,full depth,6,12\n"
    )
    run(*arguments, "tiny", BIN=commands, TINY=str(tiny))
    sweeps = [call for call in read() if call[0] == "sweep"]
    (beside,) = [call[call.index("--reference") :] for call in sweeps if "--reference" in call]
    plain = out / "plain@1" / "training" / "checkpoint_last.pt"
    assert beside == ["--reference", str(plain), "--reference-layers", "6,12"]


def test_a_method_of_other_settings_is_rejected(calls, data, tmp_path):
    commands, _ = calls
    arguments = ("compare.sh", "emoji/caption", data, tmp_path / "init.pt", tmp_path / "out")
    run(*arguments, "self_distil", BIN=commands)
    error = failing(*arguments, "self_distil", BIN=commands, SELF_DISTIL="0.7")
    assert "self_distil@1 holds a training of other settings: --" in error
    assert " 0.7 (there: 0.5). Choose" in error


def test_a_folder_of_other_settings_is_rejected(calls, data, tmp_path):
    commands, _ = calls
    arguments = (
        "compare.sh",
        "emoji/caption",
        data,
        tmp_path / "init.pt",
        tmp_path / "out",
        "plain",
    )
    printed = run(*arguments, BIN=commands)
    own = tmp_path / "out" / "plain@1"
    assert [line for line in printed.splitlines() if line.startswith("== ")] == [
        f"== method 1 of 1, step 1 of 3: training plain in {own}/training",
        f"== method 1 of 1, step 2 of 3: sweeping plain over valid to {own}/valid.csv",
        f"== method 1 of 1, step 3 of 3: sweeping plain over test_artist to {own}/test_artist.csv",
    ]
    run(*arguments, BIN=commands)
    error = failing(*arguments, BIN=commands, EPOCHS="7", LR="1e-4")
    assert "holds a comparison of other settings: epochs 7 (there: 2), lr 1e-4 (there: " in error
    assert error.count("\n") == 1
    with (data / "caption_valid.tsv").open("a") as rows:
        rows.write("x\n")
    error = failing(*arguments, BIN=commands)
    assert f": {data}/caption_valid.tsv (another size or date). Choose" in error


def test_sweeps_of_unknown_settings_are_rejected(calls, data, tmp_path):
    """As those of results/compare, which has no settings.txt."""
    commands, _ = calls
    out = tmp_path / "out"
    (out / "mue@1").mkdir(parents=True)
    (out / "mue@1" / "valid.csv").write_text("setting\n")
    arguments = ("compare.sh", "emoji/caption", data, tmp_path / "init.pt", out, "plain")
    error = failing(*arguments, BIN=commands)
    assert error.startswith(f"{out} holds sweeps without settings.txt")
    assert error.count("\n") == 1 and [path.name for path in out.iterdir()] == ["mue@1"]


def test_cases_are_made_anew_with_other_settings(calls, data, tmp_path):
    """By the rows and by what the table chose. Saturation depends on neither."""
    commands, read = calls
    out = tmp_path / "out"
    arguments = ("compare.sh", "emoji/caption", data, tmp_path / "init.pt", out, "plain")
    run(*arguments, BIN=commands)
    for split in ("valid", "test_artist"):
        (out / "plain@1" / f"{split}.csv").write_text("setting\n")
    (out / "options.txt").write_text("plain@1\nplain@2 --exit-alpha=0.9\n")
    read()

    def made(**variables: str) -> list[str]:
        run(*arguments, BIN=commands, **variables)
        called = read()
        kinds = {"saturation": "saturation", "cases": "cases", "--exit-trace": "generation"}
        return [kind for word, kind in kinds.items() if any(word in call for call in called)]

    assert made() == ["saturation", "cases", "generation"]
    assert made() == []
    assert made(ROWS_CASES="20") == ["cases", "generation"]
    (out / "options.txt").write_text("plain@1 --exit-alpha=0.8\nplain@2 --exit-alpha=0.7\n")
    assert made(ROWS_CASES="20") == ["cases", "generation"]
    (out / "options.txt").write_text("plain@1 --exit-alpha=0.8\nplain@2 --exit-alpha=0.6\n")
    assert made(ROWS_CASES="20") == []

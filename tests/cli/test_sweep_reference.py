"""Absolute columns of a sweep, and a sweep against another model."""

from __future__ import annotations

import csv
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from helpers.task_files import SMALL, caption_folder, entailment_folder, train

from ofa_exit.cli import generation, sweep, sweep_setting
from ofa_exit.evaluation.figures.choice import read_settings
from ofa_exit.plugin.errors import UsageError

GRID = [{}, {"exit_policy": "static", "exit_depths": "2,2,1"}]
NEVER = {f"exit_{part}_threshold": 2 for part in ("image", "text", "decoder")}
FEW = ["--encoder-layers", "4", "--decoder-layers", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The data, a model of 4 + 4 layers and one of 6 + 6."""
    folder = tmp_path_factory.mktemp("reference")
    data = caption_folder(folder / "data")
    few = train("mue_caption", data, folder / "few", *FEW, updates=2)
    return data, few, train("mue_caption", data, folder / "many", updates=2)


def arguments(data, checkpoint, *more: str) -> list[str]:
    return [
        *[str(data), "--task", "mue_caption", "--path", str(checkpoint), "--cpu"],
        *["--gen-subset", "test", "--batch-size", "4", "--max-len-b", "6", "--num-workers", "0"],
        *["--scoring", "coco_caption", "--coco-tokenizer", "plain", *SMALL, *more],
    ]


@pytest.fixture
def one_second(monkeypatch):
    """Every batch takes one second."""
    clock = itertools.count()
    fake = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(sweep_setting, "time", fake)


def test_every_line_has_flops_and_time_of_a_sentence(trained, one_second):
    data, _, many = trained
    full, exits = sweep.sweep(GRID, arguments(data, many))
    for row in (full, exits):
        assert row["milliseconds_per_sentence"] == pytest.approx(1000 * 3 / 11)
        assert row["flop_reduction"] == pytest.approx(
            1 - row["gflops_per_sentence"] / row["gflops_full_per_sentence"]
        )
    assert full["gflops_per_sentence"] == full["gflops_full_per_sentence"]
    assert full["flop_reduction"] == 0 < exits["flop_reduction"]
    # The same full depth under a policy that never exits.
    (never,) = sweep.sweep([NEVER], arguments(data, many))
    for name in ("gflops_per_sentence", "words", "decoder_layers", "CIDEr"):
        assert never[name] == pytest.approx(full[name])


def test_full_depth_of_answers_is_counted(tmp_path):
    data = entailment_folder(tmp_path / "data")
    checkpoint = train("mue_snli_ve", data, tmp_path / "run", updates=2)
    given = [
        *[str(data), "--task", "mue_snli_ve", "--path", str(checkpoint), "--cpu", *SMALL],
        *["--gen-subset", "test", "--batch-size", "4", "--num-workers", "0"],
        *["--scoring", "accuracy"],
    ]
    full, never = sweep.sweep([{}, NEVER], given)
    for name in ("gflops_per_sentence", "decoder_layers", "accuracy", "words"):
        assert never[name] == pytest.approx(full[name])


def test_a_sweep_against_another_model(trained, tmp_path, one_second):
    data, few, many = trained
    (tmp_path / "grid.json").write_text(json.dumps(GRID))
    given = arguments(data, few, "--reference-layers", "6,6")
    out = tmp_path / "sweep.csv"
    assert (
        sweep.main([str(tmp_path / "grid.json"), str(out), *given, "--reference", str(many)]) == 0
    )
    rows = list(csv.DictReader(out.open()))
    assert [row["run"] for row in rows] == ["sweep", "sweep", "reference"]
    assert [row["setting"] for row in rows] == [
        "full depth", "exit_policy=static exit_depths=2,2,1", "reference",
    ]  # fmt: skip
    assert list(read_settings(out)) == [row["setting"] for row in rows[:2]]
    assert [row["decoder_layers_full"] for row in rows] == ["4", "4", "6"]
    assert {row["sentences"] for row in rows} == {"11"}
    full, exits, reference = ({k: float(v) for k, v in row.items() if k.endswith(("ence", "tion"))}
                              for row in rows)  # fmt: skip
    assert reference["flop_reduction"] == reference["measured_time_reduction"] == 0
    for row in (full, exits):
        saved = 1 - row["gflops_per_sentence"] / reference["gflops_per_sentence"]
        assert row["flop_reduction"] == pytest.approx(saved, abs=1e-4)
        assert row["measured_time_reduction"] == 0  # each batch takes a second
    assert 0 < full["flop_reduction"] < exits["flop_reduction"]
    assert full["expected_time_reduction"] == pytest.approx(1 - 4 / 6, abs=1e-5)
    assert exits["expected_time_reduction"] == pytest.approx(1 - (2 / 6 + 1 / 6) / 2, abs=1e-5)
    assert {row["reference_layers"] for row in rows} == {"6+6"}
    # The lines of the reference are those of its own sweep.
    (own,) = sweep.sweep(GRID[:1], arguments(data, many))
    assert reference["gflops_per_sentence"] == pytest.approx(own["gflops_per_sentence"], rel=1e-4)
    assert float(rows[2]["CIDEr"]) == pytest.approx(own["CIDEr"], rel=1e-4)


def test_references_that_do_not_fit_are_rejected(trained, tmp_path, monkeypatch):
    data, few, many = trained
    state = torch.load(many)
    state["cfg"]["task"]["patch_image_size"] = 48
    torch.save(state, tmp_path / "other.pt")
    given = arguments(data, few)
    monkeypatch.setattr(sweep.Setting, "generate", None)
    with pytest.raises(UsageError, match=r"--patch-image-size is 32, .* trained with 48"):
        sweep.sweep(GRID, given, reference=str(tmp_path / "other.pt"))
    with pytest.raises(UsageError, match="--reference-layers 4,4: the model has 6 encoder"):
        sweep.sweep(GRID, [*given, "--reference-layers", "4,4"], reference=str(many))
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    with pytest.raises(UsageError, match=r"--reference /no/model\.pt: no such checkpoint"):
        sweep.sweep(GRID, given, reference="/no/model.pt")
    with pytest.raises(UsageError, match="--reference-layers '4': give two"):
        sweep.sweep(GRID, [*given, "--reference-layers", "4"])


def test_weights_of_linear_heads_are_in_the_csv(trained, tmp_path, caplog):
    """All words exit after layer 2, through a norm and a vocabulary matrix."""
    data, _, many = trained
    heads = ["--criterion", "exit_heads_loss", "--exit-head", "linear", "--exit-layers", "2"]
    start = ["--finetune-from-model", str(many)]
    with_head = train("mue_caption", data, tmp_path, *heads, *start, updates=1)
    caplog.clear()
    grid = [{"exit_policy": "confidence", "exit_alpha": alpha} for alpha in (1, 0)]
    with caplog.at_level("INFO"):
        _, exits = sweep.sweep(grid, arguments(data, with_head))
    state = torch.load(many)["model"]
    channels = state["decoder.layer_norm.weight"].numel()
    head = state["decoder.output_projection.weight"].numel() + 2 * channels
    layer = sum(w.numel() for name, w in state.items() if name.startswith("decoder.layers.0."))
    assert exits["parameter_speedup"] == 3
    assert exits["parameter_speedup_with_heads"] == pytest.approx(6 / (2 + head / layer))
    assert caplog.text.count(f"1 exit heads of {head:,} weights each") == 1

"""Many settings over one checkpoint, and tables of finished generations."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from task_files import SMALL, caption_folder, generate, train

from ofa_exit import sweep
from ofa_exit.evaluation import table


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    data = caption_folder(folder / "data")
    return data, train("mue_caption", data, folder / "run", updates=2)


def arguments(data, checkpoint) -> list[str]:
    return [
        *[str(data), "--task", "mue_caption", "--path", str(checkpoint), "--cpu"],
        *["--gen-subset", "test", "--batch-size", "4", "--max-len-b", "6", "--num-workers", "0"],
        *["--scoring", "coco_caption", "--coco-tokenizer", "plain", *SMALL],
    ]


def test_a_sweep_says_what_single_generations_say(trained, tmp_path, monkeypatch):
    data, checkpoint = trained
    grid = [
        {"run": "full depth"},
        {"exit_image_threshold": 0.5, "exit_text_threshold": 0.5, "exit_decoder_threshold": 0.5},
        {"run": "fixed", "exit_policy": "static", "exit_depths": "2,3,1"},
    ]
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    out = tmp_path / "results" / "sweep.csv"
    monkeypatch.setattr(
        sys, "argv", ["sweep", str(tmp_path / "grid.json"), str(out), *arguments(data, checkpoint)]
    )
    assert sweep.main() == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["run"] for row in rows] == ["full depth", "sweep", "fixed"]
    assert all(row["sentences"] == "11" for row in rows)
    assert float(rows[0]["measured_time_reduction"]) == 0
    assert float(rows[0]["expected_time_reduction"]) == 0
    assert (rows[2]["image_layers"], rows[2]["text_layers"]) == ("2", "3")
    # BLIPEE's measure of a model without exits: the decoder's layers alone.
    assert [float(row["parameter_speedup"]) for row in rows][::2] == [1, 6]
    assert float(rows[2]["expected_time_reduction"]) == pytest.approx(1 - (2.5 / 6 + 1 / 6) / 2)
    alone = generate(
        "mue_caption", data, checkpoint, *["--gen-subset", "test", "--scoring", "coco_caption"],
        *["--coco-tokenizer", "plain", "--exit-policy", "static", "--exit-depths", "2,3,1"],
    )  # fmt: skip
    assert f"CIDEr = {float(rows[2]['CIDEr']):.2f}" in alone["result"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beam": 5}, "no exit option"),
        ({"exit_decoder_threshold": -1}, "--exit-decoder-threshold"),
        ({"exit_encoder_threshold": 0.9}, "joint encoder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(trained, setting, message):
    data, checkpoint = trained
    with pytest.raises(ValueError, match=message):
        sweep.sweep([setting], arguments(data, checkpoint))


def test_a_sweep_over_exits_counts_them(trained, tmp_path):
    """Everybody leaves behind layer 2, through an exit of one layer: 6 / (2 + 1)."""
    data, checkpoint = trained
    grid = [
        {"exit_policy": "confidence", "exit_alpha": 1},
        {"exit_policy": "confidence", "exit_alpha": 0, "exit_options": '{"layers": [2]}'},
    ]
    overrides = ["--model-overrides", "{'exit_layers': '1,2'}"]
    full, exits = sweep.sweep(grid, [*arguments(data, checkpoint), *overrides])
    assert (full["parameter_speedup"], full["flop_reduction"]) == (1, 0)
    assert (exits["parameter_speedup"], exits["decoder_layers"]) == (2, 2)
    assert exits["flop_reduction"] > 0


def write_run(folder, quality: str, seconds: float) -> None:
    folder.mkdir()
    summary = {
        "sentences": 2,
        "image_layers": 3.0,
        "text_layers": 2.0,
        "decoder_layers": 4.5,
        "expected_time_reduction": 0.25,
        "flop_reduction": 0.2,
        "seconds_per_sentence": seconds,
    }
    (folder / "generate-test.txt").write_text(f"H-0\t-1\tx\nGenerate test with beam=5: {quality}\n")
    (folder / "log.txt").write_text(f"Exit summary: {json.dumps(summary)}\n")


def test_table_compares_with_the_first_run(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "full", "CIDEr = 120.00 BLEU-4 = 30.00 (2 captions)", 0.2)
    write_run(tmp_path / "exits", "CIDEr = 110.00 BLEU-4 = 28.00 (2 captions)", 0.15)
    runs = [f"{name}={tmp_path / name}" for name in ("full", "exits")]
    monkeypatch.setattr(sys, "argv", ["table", *runs, "--csv", str(tmp_path / "table.csv")])
    assert table.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == [
        *["exits", "110.0", "28.0", "3.00", "2.00", "4.50"],
        *["-25.0%", "-20.0%", "-25.0%", "150.0"],
    ]
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert float(rows[1]["measured_time_reduction"]) == pytest.approx(0.25)


def test_an_unfinished_generation_is_named(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "killed", "CIDEr = 1.00", 0.1)
    (tmp_path / "killed" / "log.txt").unlink()
    monkeypatch.setattr(sys, "argv", ["table", f"killed={tmp_path / 'killed'}"])
    assert table.main() == 2
    assert "ends before its result" in capsys.readouterr().err

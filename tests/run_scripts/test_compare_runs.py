"""compare.sh through the real commands: trainings, sweeps, tables, figures, and a second seed."""

from __future__ import annotations

import csv

import pytest
from helpers.emoji_scripts import PLAIN, few_rows, script
from helpers.script_runs import run


@pytest.mark.slow
def test_methods_seeds_and_a_smaller_model(tmp_path):
    data, out, small = few_rows(tmp_path / "data", 16), tmp_path / "out", tmp_path / "small"
    layers = ["--encoder-layers", "4", "--decoder-layers", "4"]
    script(
        *("pretrain.sh", "caption", small, 1, *layers, "--disable-validation"),
        DATA=str(data),
        BATCH="8",
    )
    settings = {
        "EPOCHS": "1",
        "BATCH": "8",
        "MICRO": "8",
        "ROWS_VALID": "4",
        "ROWS_TEST": "4",
        "ROWS_CASES": "4",
        "TINY": str(small / "checkpoint_last.pt"),
    }
    arguments = ("compare.sh", "emoji/caption", data, PLAIN, out)
    run(*arguments, "plain", "deeblip", "tiny", **settings)
    run(*arguments, "mue", **settings)
    page = (out / "cases.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("plain", "deeblip", "mue", "tiny"))
    lines = (out / "saturation.csv").read_text(encoding="utf-8").splitlines()
    assert {line.split(",")[0] for line in lines[1:]} >= {"plain", "mue", "tiny"}
    figures = (out / "figures.txt").read_text(encoding="utf-8")
    assert sorted(figures.splitlines()[0].split()) == ["deeblip@1", "mue@1", "plain@1", "tiny@1"]
    run(*arguments, "mue", SEED="2", **settings)
    assert (out / "figures.txt").read_text(encoding="utf-8") == figures

    with (out / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    full = {row["method"]: row for row in rows if row["rule"] == "full depth"}
    # A later run keeps the methods of an earlier one. DeeBERT was trained, but not asked for.
    assert set(full) == {"mue", "plain", "deeblip", "tiny"}
    assert full["mue"]["seeds"] == "1 | 2"
    assert float(full["tiny"]["expected_time_reduction"]) == pytest.approx(1 / 3)
    assert float(full["tiny"]["measured_time_reduction"]) != 0  # against plain's
    trained = {name: int(float(row["trained_parameters"])) for name, row in full.items()}
    assert trained["deeblip"] > 0 and 0 < trained["tiny"] < trained["plain"]

"""fit-gate end to end: the file, what applies it, and what is rejected before weights are read."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from helpers import task_files as files
from helpers.gate_files import write_gate
from helpers.photos import write_photos
from helpers.task_files import SMALL, caption_row, write_tsv

import ofa_exit
from ofa_exit.cli import generation, sweep
from ofa_exit.cli.calibrate import main as calibrate
from ofa_exit.cli.fit_gate import main
from ofa_exit.cli.fit_gate import run as steps
from ofa_exit.plugin.errors import PredictionError, UsageError
from ofa_exit.plugin.exit_config import read_exit_config
from ofa_exit.policies.gate_file import read_gate
from ofa_exit.policies.measures import GATE_FEATURES

TASK = "mue_caption"
SEARCH = ["--max-len-b", "6", "--beam", "2"]


@pytest.fixture(autouse=True)
def own_argv(monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit_gate")
    data = files.caption_folder(folder / "data")
    write_tsv(data / "rows.tsv", [caption_row(n, 2) for n in range(24)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        checkpoint = files.train(TASK, data, folder / "run", "--disable-validation", updates=8)
    return data, checkpoint


def fit(trained, out, *more: str, data="rows.tsv") -> int:
    folder, checkpoint = trained
    return main(
        [
            *[str(folder / data), "--checkpoint", str(checkpoint), "--out", str(out), "--cpu"],
            *["--num-workers", "0", *SMALL, *SEARCH, *more],
        ]
    )


@pytest.fixture(scope="module")
def gate(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("gate") / "gate.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        assert fit(trained, out) == 0
    return str(out)


def exits(gate: str, confidence: str = "0.6") -> list[str]:
    given = ["--exit-policy", "learned", "--exit-gate", gate]
    return [*given, "--exit-gate-confidence", confidence, *SEARCH]


def test_the_file(trained, gate, tmp_path, capsys):
    found = read_gate(gate)
    assert found.features == list(GATE_FEATURES) and len(found.layers) == 5
    assert found.fit["rows"] == 24 and found.fit["words"] >= 24 * 2
    assert found.fit["search"] == {"beam": 2, "max_len_b": 6}
    assert found.task["kind"] == "caption" and found.data["file"] == "rows.tsv"
    assert fit(trained, tmp_path / "other.json", "--batch-size", "5", "--ridge", "3") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("layer 1: the last layer's word in ")
    assert printed[-1].endswith("other.json") and len(printed) == 6
    other = read_gate(str(tmp_path / "other.json"))
    for one, two in zip(found.layers, other.layers):
        assert one["mean"] == pytest.approx(two["mean"], abs=1e-3)
        assert one["agreement"] == pytest.approx(two["agreement"])
        assert sum(map(abs, two["weights"])) <= sum(map(abs, one["weights"])) + 1e-3


def test_generation_predict_and_sweep_apply_it(trained, gate, tmp_path):
    data, checkpoint = trained
    lines = files.generate(TASK, data, checkpoint, *exits(gate))
    found = ofa_exit.load(str(checkpoint), device="cpu")
    photos = write_photos(tmp_path / "photos", 3)
    options = {"gate": gate, "gate_confidence": 0.6}
    predicted = found.caption(photos, exits="learned", **options)
    assert min(layer for one in predicted for layer in one.layers) < 6

    arguments = files.generate_arguments(TASK, data / "test.tsv", checkpoint, *SEARCH)
    learned = {"exit_policy": "learned", "exit_gate": gate}
    grid = [{}, *({**learned, "exit_gate_confidence": p} for p in (0.9, 0.6, 0.0))]
    rows = sweep.sweep(grid, arguments, time_only=True)
    layers = [row["decoder_layers"] for row in rows]
    assert layers[0] == 6 and layers == sorted(layers, reverse=True) and layers[-1] == 1
    assert rows[1]["image_layers"] == 6
    assert any(f"{layers[2]:.2f}" in line for line in lines["report"])


def test_calibration_chooses_the_confidence(trained, gate, tmp_path):
    data, checkpoint = trained
    own = write_gate(tmp_path / "gate.json", read_gate(gate))
    out = tmp_path / "exits.json"
    easy = ["--keep", "0.3", "--confidence", "0.6", "--batch-size", "8"]
    given = [str(data / "rows.tsv"), "--checkpoint", str(checkpoint), "--out", str(out), "--cpu"]
    never = [f"--exit-{part}-threshold=2" for part in ("image", "text")]
    given += ["--num-workers", "0", *SMALL, *easy, *SEARCH, *never]
    assert calibrate([*given, "--exit-policy", "learned", "--exit-gate", own]) == 0
    config = read_exit_config(str(out))
    assert config.exits["exit_policy"] == "learned" and config.exits["exit_gate"] == own
    assert "exit_gate_confidence" in config.exits
    assert config.certificate["fitted"] == read_gate(own).digest
    applied = files.generate(TASK, data, checkpoint, "--exit-config", str(out), *SEARCH)
    assert applied["D"]
    # The same path, but other numbers: what was tested is gone.
    changed = read_gate(own)
    changed.layers[0]["bias"] += 1
    write_gate(tmp_path / "gate.json", dataclasses.replace(changed))
    with pytest.raises(UsageError, match=r"--exit-gate .* was fitted again after --exit-config"):
        files.generate(TASK, data, checkpoint, "--exit-config", str(out), *SEARCH)
    arguments = files.generate_arguments(TASK, data / "test.tsv", checkpoint, *SEARCH)
    with pytest.raises(UsageError, match=r"setting 2: --exit-gate .* was fitted again"):
        sweep.sweep([{}, {"exit_config": str(out)}], arguments)
    with pytest.raises(UsageError, match="another run"):
        calibrate([*given, "--exit-policy", "learned", "--exit-gate", own])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"checkpoint": {"file": "x.pt", "sha256": "0" * 64}}, r"another checkpoint \(x\.pt\)"),
        ({"task": {"kind": "vqa"}}, "another task: kind vqa, not caption"),
        ({"layers": 4}, "fitted on 5 decoder layers, and the model has 6"),
    ],
)
def test_foreign_gates_are_rejected_before_weights_are_read(
    trained, gate, tmp_path, monkeypatch, parts, message
):
    data, checkpoint = trained
    own = read_gate(gate)
    if "layers" in parts:
        parts = {"layers": own.layers[:4]}
    path = write_gate(tmp_path / "gate.json", dataclasses.replace(own, **parts))
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    with pytest.raises(UsageError, match=message):
        files.generate(TASK, data, checkpoint, *exits(path))
    if "task" not in parts:
        arguments = files.generate_arguments(TASK, data / "test.tsv", checkpoint, *SEARCH)
        with pytest.raises(UsageError, match=f"setting 1: .*{message}"):
            sweep.sweep([{"exit_policy": "learned", "exit_gate": path}], arguments)


def test_python_rejects_a_foreign_gate(trained, gate, tmp_path):
    _, checkpoint = trained
    foreign = dataclasses.replace(read_gate(gate), checkpoint={"file": "x", "sha256": "0" * 64})
    path = write_gate(tmp_path / "gate.json", foreign)
    model = ofa_exit.load(str(checkpoint), device="cpu")
    photos = write_photos(tmp_path / "photos", 1)
    with pytest.raises(PredictionError, match=r"--exit-gate .* was fitted on another checkpoint"):
        model.caption(photos, exits="learned", gate=path)
    with pytest.raises(PredictionError, match="needs --exit-gate"):
        model.caption(photos, exits="learned")


EDITS = [
    (lambda saved: saved["layers"][0].update(bias=9.0), "was edited"),
    (lambda saved: saved.update(format=2), "no file of ofa-exit fit-gate"),
    (lambda saved: saved.pop("task"), "task is missing"),
    (lambda saved: saved.update(features=["cosine"]), "features are others than change"),
    (lambda saved: saved.update(layers=[]), "layers is empty"),
    (lambda saved: saved["layers"][1]["scale"].pop(), "layer 2 has not one scale per feature"),
    (lambda saved: saved["layers"][1]["mean"].__setitem__(0, float("nan")), "no finite number"),
    (lambda saved: saved["layers"][2].update(scale=[1, 1, 0, 1]), "layer 3 .* not above 0"),
    (lambda saved: saved["layers"][2].update(bias=10**400), "layer 3 has no bias"),
    (lambda saved: saved["checkpoint"].clear(), "the checkpoint has no SHA-256"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_edited_gates_are_rejected(gate, tmp_path, edit, message):
    with open(gate) as stream:
        saved = json.load(stream)
    edit(saved)
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=message):
        read_gate(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_other_files_are_no_gates(tmp_path, text):
    path = tmp_path / "gate.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"gate\.json"):
        read_gate(str(path))
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_gate(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--exit-policy", "similarity"], "--exit-policy: fit-gate runs the model at full depth"),
        (["--exit-lossless=4"], "--exit-lossless: fit-gate runs"),
        (["--path", "x.pt"], "--path: .*fit-gate names its checkpoints itself"),
        (["--sampling", "--beam", "1"], "answers would differ without exits, too"),
        (["--beam", "0"], "--beam"),
        (["--task", "mue_vqa"], "mue_vqa|column|field"),
    ],
)
def test_bad_options_are_rejected_before_weights_are_read(
    trained, tmp_path, monkeypatch, given, message
):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    with pytest.raises(UsageError, match=message):
        fit(trained, tmp_path / "gate.json", *given)


def test_other_files_are_not_overwritten(trained, gate, tmp_path, monkeypatch):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match="is a folder: name a file in it"):
        fit(trained, tmp_path / "folder.json")
    (tmp_path / "grid.json").write_text("[{}]")
    with pytest.raises(UsageError, match="--out would overwrite a file"):
        fit(trained, tmp_path / "grid.json")
    with pytest.raises(UsageError, match=r"none\.pt"):
        fit((trained[0], tmp_path / "none.pt"), tmp_path / "gate.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--ridge", "0"], "--ridge 0: give"), (["--out", "gate.txt"], "ends in .json")],
)
def test_bad_values_are_rejected_at_once(given, message, capsys):
    with pytest.raises(SystemExit):
        main(["x.tsv", "--checkpoint", "x.pt", "--out", "x.json", *given])
    assert message in capsys.readouterr().err


def test_states_that_are_not_finite_fit_nothing():
    class Broken:
        def of_layer(self, layer):
            return torch.tensor([[float("nan")] * 4]), torch.tensor([True])

    with pytest.raises(UsageError, match="states after layer 2 are not finite"):
        steps.fitted_layer(Broken(), 2, 1.0)

"""Calibration end to end: thresholds with a certificate, and the commands that apply them."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from types import SimpleNamespace

import pytest
from helpers import task_files as files
from helpers.photos import write_photos
from helpers.small_disk import disk_of, held_elsewhere
from helpers.task_files import COLOURS, SMALL, entailment_row, write_tsv

import ofa_exit
from ofa_exit.cli import generation, sweep
from ofa_exit.cli.calibrate import main
from ofa_exit.cli.calibrate import run as steps
from ofa_exit.evaluation.calibration.losses import read_sentences
from ofa_exit.plugin.calibrated import warn_of_search, warn_of_settings
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.exit_config import read_exit_config

TASK = "mue_snli_ve"
EASY = ["--keep", "0.5", "--confidence", "0.6"]
DECODER = ["--exit-image-threshold", "2", "--exit-text-threshold", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    data = files.entailment_folder(folder / "data")
    write_tsv(data / "rows.tsv", [entailment_row(n) for n in range(24)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        checkpoint = files.train(TASK, data, folder / "run", "--disable-validation", updates=8)
    return data, checkpoint


def calibrate(trained, out, *more: str, data="rows.tsv") -> int:
    folder, checkpoint = trained
    return main(
        [
            *[str(folder / data), "--checkpoint", str(checkpoint), "--out", str(out), "--cpu"],
            *["--num-workers", "0", "--batch-size", "8", *SMALL, *more],
        ]
    )


@pytest.fixture(scope="module")
def exits(trained, tmp_path_factory):
    """A file of decoder thresholds."""
    out = tmp_path_factory.mktemp("exits") / "exits.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        assert calibrate(trained, out, *EASY, *DECODER) == 0
    return out


def test_the_certificate(trained, exits):
    config = read_exit_config(str(exits))
    assert config.exits["exit_policy"] == "similarity"
    # Defaults in force: a later version may have others. A static schedule has no beta.
    assert config.exits["exit_schedule"] == "static" and config.exits["exit_kv"] == "propagate"
    assert config.exits["exit_encoder_similarity"] == "sample"
    assert not config.exits.keys() & {"exit_beta", "exit_tau", "exit_encoder_threshold"}
    assert config.certificate["model"] == {"overrides": {}, "fp16": False}
    assert config.exits["exit_image_threshold"] in ("2", 2.0)
    certificate = config.certificate
    assert (certificate["rows"], certificate["path_rows"]) == (16, 8)
    assert certificate["bound"] == 0.5 and certificate["p_value"] <= certificate["level"] == 0.4
    images = [one.image for one in read_sentences(exits.with_suffix(".rows.jsonl"))[1]]
    assert all(images) and len(set(images)) == len(COLOURS) and images[:6] == images[6:12]
    assert config.task["kind"] == "snli_ve" and config.data["file"] == "rows.tsv"


def test_what_follows_from_other_settings_equals_what_is_generated(trained, exits, tmp_path):
    """--save flops and time run every setting."""
    assert calibrate(trained, tmp_path / "all.json", *EASY, *DECODER, "--save", "time") == 0
    derived = read_sentences(exits.with_suffix(".rows.jsonl"))[1]
    generated = read_sentences(tmp_path / "all.rows.jsonl")[1]
    assert len(derived) == len(generated) == 24
    for one, other in zip(derived, generated):
        assert (one.row, one.texts, one.references) == (other.row, other.texts, other.references)
        assert one.costs["layers"] == other.costs["layers"]
    assert len(set(derived[0].costs["layers"])) > 2  # the settings differ


@pytest.mark.parametrize("tokens", [[], ["--exit-image-tokens", "0.5"]], ids=["all", "half"])
def test_what_follows_along_three_axes_equals_what_is_generated(trained, tmp_path, capsys, tokens):
    """With image tokens that exit, "never" saves FLOPs, too, and is not full depth."""
    given = [*EASY, *tokens]
    assert calibrate(trained, tmp_path / "few.json", *given) == 0
    few = capsys.readouterr().out
    assert calibrate(trained, tmp_path / "all.json", *given, "--save", "flops") == 0
    ran, total = map(int, re.search(r"ran (\d+) of (\d+) generations, the others", few).groups())
    assert ran < total and f"ran {total} of {total} generations\n" in capsys.readouterr().out
    derived, generated = (
        read_sentences(tmp_path / f"{name}.rows.jsonl")[1] for name in ("few", "all")
    )
    for one, other in zip(derived, generated, strict=True):
        assert (one.row, one.texts, one.image) == (other.row, other.texts, other.image)
        assert one.costs["layers"] == other.costs["layers"]
    never = [one.costs["flops"][1] / one.costs["flops"][0] for one in generated]
    assert all(share < 1 for share in never) if tokens else never == [1] * 24
    with pytest.raises(UsageError, match=r"another run \(clock\)"):
        calibrate(trained, tmp_path / "all.json", *given, "--save", "time")


def test_other_numbers_need_no_model_and_a_rest_is_resumed(trained, exits, tmp_path, monkeypatch):
    out = tmp_path / "exits.json"
    saved = exits.with_suffix(".rows.jsonl").read_text().splitlines(keepends=True)
    rows = tmp_path / "exits.rows.jsonl"
    rows.write_text("".join(saved))
    with monkeypatch.context() as patch:
        patch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
        given = ["--metric", "accuracy", *DECODER, "--keep"]
        with pytest.raises(
            UsageError, match=r"24 rows are too few .* mean score is 0\.\d+: at lea"
        ):
            calibrate(trained, out, *given, "0.9", "--confidence", "0.7")
        assert calibrate(trained, out, *given, "0.4", "--confidence", "0.6") == 0
    assert json.loads(out.read_text())["certificate"]["full_lower"] is not None
    rows.write_text("".join(saved[:9]) + '{"row": 9')
    assert calibrate(trained, out, *EASY, *DECODER) == 0
    assert [one.texts for one in read_sentences(rows)[1]] == [
        one.texts for one in read_sentences(exits.with_suffix(".rows.jsonl"))[1]
    ]
    for other in (["--exit-schedule", "decay"], ["--model-overrides", "{'dropout': 0.2}"]):
        with pytest.raises(UsageError, match="another run"):
            calibrate(trained, out, *EASY, *DECODER, *other)


def test_a_batch_is_resumed_in_its_middle(trained, exits, tmp_path):
    out, rows = tmp_path / "exits.json", tmp_path / "exits.rows.jsonl"
    whole = read_sentences(exits.with_suffix(".rows.jsonl"))[1]
    head, *lines = exits.with_suffix(".rows.jsonl").read_text().splitlines(keepends=True)
    rows.write_text(head + "".join(lines[:3]))
    assert calibrate(trained, out, *EASY, *DECODER) == 0
    assert len(rows.read_text().splitlines()) == 1 + len(lines)
    resumed = read_sentences(rows)[1]
    assert [one.texts for one in resumed] == [one.texts for one in whole]
    # A batch is repeated as a whole, because FLOPs depend on its other rows.
    assert [one.costs["flops"] for one in resumed] == [one.costs["flops"] for one in whole]
    assert out.read_bytes() == exits.read_bytes()


def test_a_full_disk_is_one_line_and_the_command_resumes(trained, exits, tmp_path, capsys):
    out, rows = tmp_path / "exits.json", tmp_path / "exits.rows.jsonl"
    size = len(exits.with_suffix(".rows.jsonl").read_bytes())
    with disk_of(size // 2):
        assert calibrate(trained, out, *EASY, *DECODER) == 2
    assert f"{rows} cannot be written: File too large" in capsys.readouterr().err
    assert not out.exists() and 0 < rows.stat().st_size <= size // 2
    assert calibrate(trained, out, *EASY, *DECODER) == 0
    assert out.read_bytes() == exits.read_bytes()


def test_a_second_calibration_into_the_same_file_is_rejected(trained, tmp_path):
    message = r"exits\.rows\.jsonl: another process writes it"
    lock = tmp_path / "exits.rows.lock"
    with held_elsewhere(lock), pytest.raises(UsageError, match=message):
        calibrate(trained, tmp_path / "exits.json", *EASY, *DECODER)
    assert not (tmp_path / "exits.rows.jsonl").exists()


def test_another_search_is_warned_of(exits, caplog):
    cfg = SimpleNamespace(exit_config=str(exits))
    with caplog.at_level(logging.WARNING):
        warn_of_search(cfg, SimpleNamespace(beam=5))
        assert not caplog.text
        warn_of_search(cfg, SimpleNamespace(lenpen=0.5))
        assert "another search: --lenpen 0.5, calibrated with 1" in caplog.text
        caplog.clear()
        warn_of_settings([None, str(exits), str(exits)], SimpleNamespace(lenpen=0.5), None)
    assert caplog.text.count("another search") == 1
    assert caplog.text.count("exits calibrated on") == 1


def test_other_files_are_not_overwritten(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match="is a folder: name a file in it"):
        calibrate(trained, tmp_path / "folder.json", *EASY)
    grid = tmp_path / "grid.json"
    grid.write_text("[{}]")
    with pytest.raises(UsageError, match="--out would overwrite a file"):
        calibrate(trained, grid, *EASY)
    assert grid.read_text() == "[{}]"


def test_generation_predict_and_sweep_apply_it(trained, exits, tmp_path, caplog):
    data, checkpoint = trained
    config = read_exit_config(str(exits))
    options = [f"--{k.replace('_', '-')}={v}" for k, v in config.exits.items()]
    plain = files.generate(TASK, data, checkpoint, *options)
    with caplog.at_level(logging.WARNING):
        applied = files.generate(TASK, data, checkpoint, "--exit-config", str(exits))
    assert "exits calibrated on rows.tsv" in caplog.text
    assert applied["D"] == plain["D"]
    layers = [line for line in plain["report"] if line.startswith("mean decoder")]
    assert layers and [one for one in applied["report"] if one in layers] == layers

    caplog.clear()
    arguments = files.generate_arguments(TASK, data, checkpoint)
    grid = [{}, {"exit_config": str(exits)}, config.exits]
    with caplog.at_level(logging.WARNING):
        rows = sweep.sweep(grid, [*arguments, "--scoring", "accuracy"])
    assert caplog.text.count("exits calibrated on rows.tsv") == 1
    assert rows[1]["decoder_layers"] == rows[2]["decoder_layers"] <= rows[0]["decoder_layers"]

    write_photos(tmp_path, 2)
    model = ofa_exit.load(checkpoint, bpe_dir=data, device="cpu")
    hypotheses = "a red square"
    found = model.entail(sorted(tmp_path.glob("*.*")), hypotheses, config=str(exits))
    fields = {k.removeprefix("exit_"): v for k, v in config.exits.items() if k != "exit_policy"}
    assert len(fields) > 4  # all that are in force
    same = model.entail(sorted(tmp_path.glob("*.*")), hypotheses, exits="similarity", **fields)
    assert [one.layers for one in found] == [one.layers for one in same]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: "{", r"is not JSON"),
        (lambda saved: "[" * 100_000, r"is not JSON"),
        (lambda saved: [], "no file of ofa-exit calibrate"),
        (lambda saved: {**saved, "format": 7}, "of another version"),
        (lambda saved: {**saved, "exits": 3}, "exits is missing, or no object"),
        (lambda saved: {**saved, "exits": {}}, "exits names no exit_policy"),
        (
            lambda saved: {**saved, "certificate": {**saved["certificate"], "p_value": 2}},
            "p_value of the certificate is 2, above 1",
        ),
        (
            lambda saved: {**saved, "certificate": {**saved["certificate"], "rows": "many"}},
            "rows of the certificate is 'many'",
        ),
        (  # no float holds it
            lambda saved: {**saved, "certificate": {**saved["certificate"], "rows": 10**400}},
            "was edited",
        ),
        (
            lambda saved: {**saved, "exits": {**saved["exits"], "exit_decoder_threshold": 0.1}},
            "was edited",
        ),
    ],
)
def test_edited_files_are_rejected_before_weights_are_read(
    trained, exits, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    path = tmp_path / "edited.json"
    changed = change(json.loads(exits.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(UsageError, match=message):
        files.generate(TASK, *trained, "--exit-config", str(path))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("checkpoint", {"file": "other.pt", "sha256": "0"}, r"another checkpoint \(other\.pt\)"),
        ("task", {"kind": "vqa"}, "another task: kind vqa, not snli_ve"),
    ],
)
def test_other_checkpoints_and_tasks_are_rejected(
    trained, exits, tmp_path, monkeypatch, part, value, message
):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    path = tmp_path / "foreign.json"
    dataclasses.replace(read_exit_config(str(exits)), **{part: value}).write(path)
    with pytest.raises(UsageError, match=message):
        files.generate(TASK, *trained, "--exit-config", str(path))


def test_other_exit_options_beside_it_are_rejected(trained, exits):
    given = ["--exit-config", str(exits), "--exit-decoder-threshold", "0.3"]
    with pytest.raises(UsageError, match=r"names all exit options: leave --exit-decoder-threshold"):
        files.generate(TASK, *trained, *given)
    with pytest.raises(UsageError, match=r"no/file\.json cannot be read"):
        files.generate(TASK, *trained, "--exit-config", "no/file.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--metric", "cider"], "--metric cider: snli_ve has consistency, accuracy"),
        (["--exit-policy", "static", "--exit-depths", "2,2,2"], "no numeric option to calibrate"),
        (["--exit-policy", "static"], "--exit-policy static has no numeric option"),
        (["--exit-policy", "similar"], "--exit-policy 'similar' cannot be calibrated"),
        (["--exit-config", "x.json"], "--exit-config: calibrate names"),
        ([], "24 rows are too few to promise 0.96 with confidence 0.95: at least 111 are needed"),
        (["--keep", "1"], "--keep 1: no number of rows"),
        (["--exit-image-threshold", "0.9,0.8"], "gives 2 numbers"),
        (["--sampling", "--beam", "1"], "answers would differ without exits, too"),
    ],
)
def test_bad_options_are_rejected_before_weights_are_read(
    trained, tmp_path, monkeypatch, given, message
):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    with pytest.raises(UsageError, match=message):
        calibrate(trained, tmp_path / "exits.json", *given)


def test_rows_without_references_are_rejected(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    rows = [entailment_row(n) for n in range(4)]
    rows[2][-1] = ""
    write_tsv(trained[0] / "hidden.tsv", rows)
    with pytest.raises(UsageError, match=r"hidden\.tsv, line 3: column 'label' is empty"):
        calibrate(trained, tmp_path / "x.json", *EASY, "--metric", "accuracy", data="hidden.tsv")


@pytest.mark.parametrize(
    "given",
    [["--keep", "0"], ["--keep", "96"], ["--confidence", "0.5"], ["--confidence", "1"],
     ["--metric", "bleu"], ["--save", "money"], ["--out", "exits.txt"]],
    ids=" ".join,
)  # fmt: skip
def test_shares_out_of_range_are_rejected(given, capsys):
    with pytest.raises(SystemExit):
        main(["x.tsv", "--checkpoint", "x.pt", "--out", "x.json", *given])
    assert given[0] in capsys.readouterr().err


def test_nothing_passes_and_the_report_says_what_it_takes(trained, exits, tmp_path, capsys):
    """With a loss below the bound a number of rows, above it the reason why none is enough."""
    out = tmp_path / "exits.json"
    rows = exits.with_suffix(".rows.jsonl").read_text()
    (tmp_path / "exits.rows.jsonl").write_text(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.ltt, "fixed_sequence", lambda p_values, level: 0)
        assert calibrate(trained, out, *EASY, *DECODER) == 0
        assert read_exit_config(str(out)).exits == {"exit_policy": "none"}
        printed = capsys.readouterr().out
        assert "24 rows are generated already: nothing was run" in printed
        assert "full depth, because no setting passes" in printed
        assert re.search(r"the first one's loss of 0\.\d+, it takes about \d+ rows", printed)
        head, *lines = rows.splitlines()
        for number, line in enumerate(lines):
            one = json.loads(line)
            full = one["texts"].index(one["texts"][one["text"][0]])
            one["texts"].append("something else")
            one["text"] = [full, *[len(one["texts"]) - 1] * (len(one["text"]) - 1)]
            lines[number] = json.dumps(one)
        (tmp_path / "exits.rows.jsonl").write_text("\n".join([head, *lines, ""]))
        assert calibrate(trained, out, *EASY, *DECODER) == 0
    printed = capsys.readouterr().out
    assert "the first one's loss of 1.0000, no number of rows is enough" in printed
    assert "Without a loss it takes 3 rows" in printed or "Without a loss it takes 2" in printed

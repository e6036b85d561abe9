"""Many settings over one checkpoint, and tables of finished generations."""

from __future__ import annotations

import csv
import json
import time
from types import SimpleNamespace

import pytest
from helpers import task_files as files
from helpers import vqa_samples as vqa
from helpers.small_disk import disk_of, held_elsewhere
from helpers.task_files import SMALL, caption_folder, generate, train

from ofa_exit.cli import generation, sweep, table
from ofa_exit.plugin.errors import UsageError

GRID = [
    {"run": "full depth"},
    {"exit_image_threshold": 0.5, "exit_text_threshold": 0.5, "exit_decoder_threshold": 0.5},
    {"run": "fixed", "exit_policy": "static", "exit_depths": "2,3,1"},
]


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


def command(folder, grid, given: list[str]) -> int:
    """Run the command on a grid (or the text of its file) in ``folder``; return its status."""
    text = grid if isinstance(grid, str) else json.dumps(grid)
    (folder / "grid.json").write_text(text)
    out = folder / "results" / "sweep.csv"
    return sweep.main([str(folder / "grid.json"), str(out), *given])


def rows_of(path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_sweep_agrees_with_single_generations(trained, tmp_path):
    data, checkpoint = trained
    assert command(tmp_path, GRID, arguments(data, checkpoint)) == 0
    (out,) = (tmp_path / "results").iterdir()  # no partial file is left
    rows = rows_of(out)
    assert [row["run"] for row in rows] == ["full depth", "sweep", "fixed"]
    assert all(row["sentences"] == "11" for row in rows)
    assert float(rows[0]["measured_time_reduction"]) == 0
    assert float(rows[0]["expected_time_reduction"]) == 0
    assert (rows[2]["image_layers"], rows[2]["text_layers"]) == ("2", "3")
    # BLIPEE's measure of a model without exits counts only the decoder's layers.
    assert [float(row["parameter_speedup"]) for row in rows][::2] == [1, 6]
    assert float(rows[2]["expected_time_reduction"]) == pytest.approx(1 - (2.5 / 6 + 1 / 6) / 2)
    alone = generate(
        "mue_caption", data, checkpoint, *["--gen-subset", "test", "--scoring", "coco_caption"],
        *["--coco-tokenizer", "plain", "--exit-policy", "static", "--exit-depths", "2,3,1"],
    )  # fmt: skip
    assert f"CIDEr = {float(rows[2]['CIDEr']):.2f}" in alone["result"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("[{}, ", r"grid\.json.*line 1 column 6.*\[\{\}"),
        ("{}", r"grid\.json.*\[\{\}"),
        ("[]", r"grid\.json.*\[\{\}"),
        ([{}, 0.9], r"grid\.json, setting 2 is 0\.9"),
        ([{}, {"beam": 5}], r"setting 2: 'beam' is.*: options are run, exit_policy"),
        ([{"exit_decoder_treshold": 0.9}], "setting 1: .*exit_decoder_threshold\\?"),
        ([{"exit_trace": "file"}], "setting 1: 'exit_trace'"),
        ([{"exit_image_threshold": "0.9;0.8"}], r"--exit-image-threshold.*'0\.9;0\.8'"),
        ([{"exit_image_threshold": True}], r"--exit-image-threshold.*True"),
        ([{"exit_policy": None}], "exit_policy is null, give a text"),
        ([{"run": 7}], "run is 7, give a text"),
        ([{"exit_depths": [1, 2]}], r"--exit-depths.*\[1, 2\].*IMAGE,TEXT,DECODER"),
        ([{"exit_options": {"layers": [2]}}], "exit_options is .*, give a text in quotes, a JSON"),
        ([{}, {"exit_decoder_threshold": -1}], "setting 2: --exit-decoder-threshold must"),
        ([{}, {"exit_kv": "lazy"}], "setting 2: --exit-kv 'lazy' is none of"),
        ([{}, {"exit_policy": "similar"}], "setting 2: unknown --exit-policy 'similar'"),
        # The checkpoint's arguments show what its model cannot do.
        ([{}, {"exit_encoder_threshold": 0.9}], "setting 2: .* is for a joint encoder"),
        ([{"exit_policy": "meta"}], "setting 1: .*needs exit heads with a learned confidence"),
        ([{}, {"exit_decoder_threshold": [0.9, 0.8]}], "setting 2: .* gives 2 numbers.* or 5"),
        ([{"exit_policy": "static", "exit_depths": "9,1,1"}], "setting 1: .*has 6 encoder"),
    ],
    ids=str,
)
def test_settings_are_rejected_by_number_before_weights_are_read(
    trained, tmp_path, monkeypatch, grid, message
):
    monkeypatch.setattr(generation.checkpoint_utils, "load_model_ensemble", None)
    with pytest.raises(UsageError, match=message):
        command(tmp_path, grid, arguments(*trained))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--exit-decoder-treshold=1"], "-treshold: did you mean --exit-decoder-threshold"),
        (["--exit-trace", "trace"], "--exit-trace"),
        (["--score-reference"], "--score-reference"),
        (["--path", "/no/checkpoint.pt"], r"/no/checkpoint\.pt"),
        (["--path", "a.pt:b.pt"], "--path names 2"),
        (["--path", "/no/checkpoint.pt", "--model-overrides", "{"], r"--model-overrides '\{'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_swept_are_rejected(trained, more, message):
    with pytest.raises(UsageError, match=message):
        sweep.sweep(GRID, [*arguments(*trained), *more])


def test_scorers_without_named_values_are_rejected(trained):
    given = [word for word in arguments(*trained) if word not in ("--coco-tokenizer", "plain")]
    with pytest.raises(UsageError, match=r"--scoring bleu .*accuracy, coco_caption"):
        sweep.sweep(GRID, [*given, "--scoring", "bleu"])


def test_settings_of_a_caller_are_rejected_too(trained):
    """Also those that the caller makes of the model."""
    for grid in ([{"beam": 5}], lambda model: [{"beam": model.cfg.decoder_layers}]):
        with pytest.raises(UsageError, match="the grid, setting 1: 'beam'"):
            sweep.sweep(grid, arguments(*trained))
    with pytest.raises(UsageError, match="the grid"):
        sweep.sweep([], arguments(*trained))


# ------------------------------------------------------------------ without answers


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Return the arguments of a generation for questions without published answers."""
    folder = tmp_path_factory.mktemp("questions")
    data = files.write_dictionary(folder / "data", vqa.WORDS)
    files.write_tsv(data / "train.tsv", [vqa.row(n, "train") for n in range(12)])
    files.write_tsv(data / "valid.tsv", [vqa.row(n) for n in range(9)])
    files.write_tsv(data / "hidden.tsv", [vqa.row(n, "test") for n in range(5)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        checkpoint = train("mue_vqa", data, folder / "run", "--disable-validation", updates=1)
    return [
        *[str(data), "--task", "mue_vqa", "--path", str(checkpoint), "--cpu", *SMALL],
        *["--gen-subset", "hidden", "--batch-size", "2", "--max-len-b", "3", "--num-workers", "0"],
        *["--scoring", "vqa_accuracy"],
    ]


def test_a_split_without_answers_is_rejected_before_it_is_generated(questions, monkeypatch):
    monkeypatch.setattr(sweep.Setting, "generate", None)
    with pytest.raises(UsageError, match=r"hidden\.tsv, line 1: q0 .*--time-only"):
        sweep.sweep(GRID, questions)


def test_a_split_without_answers_can_be_timed(questions, tmp_path):
    assert command(tmp_path, GRID, [*questions, "--time-only"]) == 0
    rows = rows_of(tmp_path / "results" / "sweep.csv")
    assert [row["sentences"] for row in rows] == ["5"] * 3
    assert "accuracy" not in rows[0] and float(rows[2]["expected_time_reduction"]) > 0
    assert float(rows[0]["measured_time_reduction"]) == 0


# ------------------------------------------------------------------ sweeps that do not finish


def stop_after(monkeypatch, batches: int, error: type[BaseException]) -> None:
    """Make the batch fail that follows ``batches``, counted over all settings."""
    original, left = sweep.Setting.add_batch, iter(range(batches))

    def add_batch(self, *given):
        if next(left, None) is None:
            raise error("stopped")
        original(self, *given)

    monkeypatch.setattr(sweep.Setting, "add_batch", add_batch)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_sweep_keeps_what_it_has(trained, tmp_path, monkeypatch, capsys, error):
    """Two batches of four by all three settings; the third batch by two of them."""
    results = tmp_path / "results"
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * 3 + 2, error)
        if error is KeyboardInterrupt:
            assert command(tmp_path, GRID, arguments(*trained)) == 130
        else:
            with pytest.raises(error, match="stopped"):
                command(tmp_path, GRID, arguments(*trained))
    partial, state = sorted(results.iterdir())
    assert partial.name == "sweep.partial.csv" and str(partial) in capsys.readouterr().err
    assert state.name == "sweep.partial.jsonl"
    before = rows_of(partial)
    assert [row["run"] for row in before] == ["full depth", "sweep", "fixed"]
    assert sorted(row["sentences"] for row in before) == ["11", "11", "8"]
    assert command(tmp_path, GRID, arguments(*trained)) == 0
    (out,) = results.iterdir()
    assert out.name == "sweep.csv" and rows_of(out)[0].keys() == before[0].keys()


def test_a_full_disk_ends_on_one_line_and_the_command_resumes(
    trained, tmp_path, monkeypatch, capsys
):
    state = tmp_path / "results" / "sweep.partial.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt)
        assert command(tmp_path, GRID, arguments(*trained)) == 130
    size = state.stat().st_size
    with disk_of(size + 10):
        assert command(tmp_path, GRID, arguments(*trained)) == 2
    assert f"{state} cannot be written: File too large" in capsys.readouterr().err
    assert state.stat().st_size == size and not state.with_name("sweep.csv").exists()
    assert command(tmp_path, GRID, arguments(*trained)) == 0
    assert "resumes after 1 batches" in capsys.readouterr().err


def test_a_second_sweep_into_the_same_file_is_rejected(trained, tmp_path):
    state = tmp_path / "results" / "sweep.partial.jsonl"
    message = r"sweep\.csv: another sweep writes it"
    lock = state.with_suffix(".lock")
    with held_elsewhere(lock), pytest.raises(UsageError, match=message):
        command(tmp_path, GRID, arguments(*trained))
    assert not state.exists()


TIMES = ("milliseconds_per_sentence", "measured_time_reduction")


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def test_a_killed_sweep_resumes(trained, tmp_path, monkeypatch, capsys):
    """Killed between two settings of the second batch, within a line of the third."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    assert command(whole, GRID, arguments(*trained)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 1 * 3 + 2, KeyboardInterrupt)
        assert command(resumed, GRID, arguments(*trained)) == 130
    state = resumed / "results" / "sweep.partial.jsonl"
    assert state.read_bytes().count(b"\n") == 2  # which sweep, and the first batch
    with state.open("a") as file:
        file.write('{"batch": 1, "settin')
    (resumed / "results" / "sweep.partial.csv").unlink()  # which only people read
    calls = []
    original = sweep.Setting.add_batch
    monkeypatch.setattr(
        sweep.Setting, "add_batch", lambda self, s: calls.append(1) or original(self, s)
    )
    capsys.readouterr()
    assert command(resumed, GRID, arguments(*trained)) == 0
    assert len(calls) == 2 * 3
    assert f"resumes after 1 batches of {state}" in capsys.readouterr().err
    rows = [rows_of(folder / "results" / "sweep.csv") for folder in (whole, resumed)]
    assert without_times(rows[0]) == without_times(rows[1])
    assert not state.exists()


@pytest.mark.parametrize(
    ("grid", "more", "differs"),
    [
        (GRID[:2], [], "(settings)"),
        (
            [*GRID[:2], {"run": "fixed", "exit_policy": "static", "exit_depths": "2,3,2"}],
            [],
            "sett",
        ),
        (GRID, ["--batch-size", "2"], "(batches)"),
        (GRID, ["--beam", "2"], "(--beam)"),
    ],
)
def test_another_sweep_does_not_resume(trained, tmp_path, monkeypatch, grid, more, differs):
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt)
        assert command(tmp_path, GRID, arguments(*trained)) == 130
    with pytest.raises(UsageError, match=r"sweep\.partial\.jsonl belongs to") as found:
        command(tmp_path, grid, [*arguments(*trained), *more])
    assert differs in str(found.value)


def test_the_lines_so_far_are_written_from_time_to_time(trained, tmp_path, monkeypatch, caplog):
    written, clock = [], iter(range(0, 10_000, 40))
    fake = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(sweep, "time", fake)
    original = sweep.write_csv

    def write(rows, path):
        original(rows, path)
        written.append([(row["sentences"], row["run"]) for row in rows])

    monkeypatch.setattr(sweep, "write_csv", write)
    # Every look at the clock takes 40 seconds: the first write is due with the second batch. It
    # takes 40, so the next one is due 40 / WRITE_TIME_SHARE later.
    given = [*arguments(*trained), "--batch-size", "1"]
    rows = sweep.sweep(GRID, given, partial=tmp_path / "so_far.csv")
    assert written == [[(2, "full depth"), (2, "sweep"), (2, "fixed")]]
    assert [row["sentences"] for row in rows] == [11] * 3

    def fail(rows, path):
        raise OSError("no space left")

    monkeypatch.setattr(sweep, "write_csv", fail)
    assert len(sweep.sweep(GRID[:1], given, partial=tmp_path / "so_far.csv")) == 1
    assert "no space left" in caplog.text


def test_a_sweep_over_exits_counts_them(trained, tmp_path):
    """All words exit after layer 2, through a head of one layer: 6 / (2 + 1)."""
    data, checkpoint = trained
    grid = [
        {"exit_policy": "confidence", "exit_alpha": 1},
        {"exit_policy": "confidence", "exit_alpha": 0, "exit_options": '{"layers": [2]}'},
    ]
    heads = ["--criterion", "exit_heads_loss", "--exit-layers", "1,2"]
    start = ["--finetune-from-model", str(checkpoint)]
    with_exits = train("mue_caption", data, tmp_path, *heads, *start, updates=1)
    full, exits = sweep.sweep(grid, arguments(data, with_exits))
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


def test_table_compares_with_the_first_run(tmp_path, capsys):
    write_run(tmp_path / "full", "CIDEr = 120.00 BLEU-4 = 30.00 (2 captions)", 0.2)
    write_run(tmp_path / "exits", "CIDEr = 110.00 BLEU-4 = 28.00 (2 captions)", 0.15)
    runs = [f"{name}={tmp_path / name}" for name in ("full", "exits")]
    assert table.main([*runs, "--csv", str(tmp_path / "table.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == [
        *["exits", "110.0", "28.0", "3.00", "2.00", "4.50"],
        *["-25.0%", "-20.0%", "-25.0%", "150.0"],
    ]
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert float(rows[1]["measured_time_reduction"]) == pytest.approx(0.25)


def test_an_unfinished_generation_is_named(tmp_path, capsys):
    write_run(tmp_path / "killed", "CIDEr = 1.00", 0.1)
    (tmp_path / "killed" / "log.txt").unlink()
    assert table.main([f"killed={tmp_path / 'killed'}"]) == 2
    assert "killed/generate-test.txt" in capsys.readouterr().err

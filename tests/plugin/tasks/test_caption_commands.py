"""Captioning by fairseq's commands: their output, and the options that they reject."""

import atexit
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import NO_IMAGE, TASK, assert_same
from helpers.paths import ROOT

from ofa_exit.evaluation.figures.table import read_run
from ofa_exit.plugin.errors import UsageError

# Fixtures.
data, checkpoint = caption_task.data, caption_task.checkpoint
models, full_depth = caption_task.models, caption_task.full_depth
NO_WEIGHTS = {"weight": torch.tensor([torch.nan])}  # rejected where weights are read


def command(name, *arguments):
    """Run fairseq-NAME in a separate process, as the shell starts it."""
    start = f"import sys; sys.argv[0] = 'fairseq-{name}'; import fairseq_cli.{name} as command"
    return subprocess.run(
        [
            *[sys.executable, "-c", f"{start}; command.cli_main()"],
            *[*arguments, "--user-dir", str(ROOT / "user_dir")],
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_generate_prints_scores_and_reports(data, checkpoint, full_depth):
    lines = files.generate(
        *(TASK, data, checkpoint, "--batch-size", "3", "--num-workers", "1"),
        *("--scoring", "coco_caption", "--coco-tokenizer", "plain"),
    )
    assert {n: hypotheses[0][1] for n, hypotheses in lines["D"].items()} == {
        number: row[0]["words"] for number, row in full_depth.items()
    }
    assert lines["S"][0] == [["what does the image describe ?"]]
    assert lines["T"][1] == [["a green square && a square of green paint"]]
    assert "(11 captions" in lines["result"]
    assert lines["report"][0] == "Layers and time:"
    assert "mean image layers" in "".join(lines["report"])
    assert json.loads(lines["report"][-1].removeprefix("Exit summary: "))["sentences"] == 11


def test_ensembles_have_one_report_per_model(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    for name, weight in state["model"].items():
        if name.startswith("encoder.layers.5"):
            weight.mul_(1.5)
    torch.save(state, tmp_path / "other.pt")
    trace = tmp_path / "trace"
    lines = files.generate(
        *(TASK, data, f"{checkpoint}:{tmp_path / 'other.pt'}", "--exit-trace", str(trace)),
        *("--exit-policy", "similarity", "--exit-image-threshold", "0.9"),
    )
    assert sorted(lines["D"]) == list(range(11))
    assert "Layers and time of model 2 of 2:" in lines["report"]
    assert len(trace.read_text().splitlines()) == 11
    assert len((tmp_path / "trace.2").read_text().splitlines()) == 11


def test_ensembles_average(data, models, full_depth):
    task = files.setup(TASK, data)
    assert_same(files.generate_rows(task, [*models, *models]), full_depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patch-image-size", "48"], "--patch-image-size is 48.* trained with 32"),
        (
            ["--imagenet-default-mean-and-std"],
            "--imagenet-default.* True.* trained with False",
        ),
        (["--exit-policy", "static", "--exit-depths", "1,1,9"], "--exit-depths 1,1,9.*6"),
    ],
)
def test_options_that_differ_from_training_are_rejected(data, checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        files.generate(TASK, data, checkpoint, *options)


def test_expected_time_is_reported_against_another_models_layers(data, checkpoint):
    """Six of eight encoder layers, six of twelve of the decoder, at full depth."""
    report = files.generate(TASK, data, checkpoint, "--reference-layers", "8, 12")["report"]
    assert "expected_time_reduction against 8+12 layers  37.5 %" in report
    summary = json.loads(report[-1].removeprefix("Exit summary: "))
    assert summary["expected_time_reduction"] == pytest.approx(1 - (6 / 8 + 6 / 12) / 2)
    assert (summary["reference_layers"], summary["decoder_layers_full"]) == ("8+12", 6)
    assert summary["flop_reduction"] == 0  # of its own full depth


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("5,6", "--reference-layers 5,6: the model has 6 encoder and 6 decoder layers"),
        ("6,4", "--reference-layers 6,4: the model has"),
        ("6", "--reference-layers '6': give two whole numbers above 0"),
        ("6,0", "--reference-layers '6,0'"),
        ("6,6,6", "--reference-layers '6,6,6'"),
        ("6,5.5", "--reference-layers '6,5.5'"),
    ],
)
def test_reference_layers_are_rejected_before_weights_are_read(
    data, checkpoint, tmp_path, layers, message
):
    path = tmp_path / "arguments.pt"
    torch.save({"cfg": torch.load(checkpoint)["cfg"], "model": NO_WEIGHTS}, path)
    with pytest.raises(UsageError, match=message) as caught:
        files.generate(TASK, data, path, "--reference-layers", layers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ensemble", [False, True])
def test_exit_options_that_do_not_fit_are_rejected_before_weights_are_read(
    data, checkpoint, tmp_path, ensemble
):
    """The second checkpoint holds only arguments, and there is no dictionary."""
    state = torch.load(checkpoint)
    torch.save({"cfg": state["cfg"], "model": NO_WEIGHTS}, tmp_path / "arguments.pt")
    path = tmp_path / "arguments.pt"
    options = ["--bpe-dir", "/no/dictionary", "--exit-policy", "similarity"]
    command = (TASK, data, f"{checkpoint}:{path}" if ensemble else path, *options)
    with pytest.raises(UsageError, match=r"--exit-encoder-threshold.*--split-modalities"):
        files.generate(*command, "--exit-encoder-threshold", "0.9")
    joint = ["--model-overrides", "{'split_modalities': False}"]
    with pytest.raises(UsageError, match=r"--exit-image-threshold.*--split-modalities"):
        files.generate(*command, *joint, "--exit-image-threshold", "0.9")
    with pytest.raises(UsageError, match=r"dict\.txt"):  # the next check
        files.generate(*command, *joint, "--exit-encoder-threshold", "0.9")
    with pytest.raises(UsageError, match=r"--model-overrides '\{'"):
        files.generate(*command, "--model-overrides", "{")


def test_the_image_size_of_training_can_be_overridden(data, checkpoint):
    lines = files.generate(
        *(TASK, data, checkpoint, "--patch-image-size", "48"),
        *("--model-overrides", "{'patch_image_size': 48}"),
    )
    assert len(lines["D"]) == 11


def test_invalid_options_are_rejected_before_the_checkpoint_is_read(data):
    with pytest.raises(ValueError, match="--exit-image-threshold"):
        files.generate(
            *(TASK, data, "/no/checkpoint", "--exit-policy", "similarity"),
            *("--exit-image-threshold", "nan"),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "no data"),
        ({"bpe_dir": "/nowhere"}, r"/nowhere/dict\.txt"),
        ({"path": "/nowhere/model.pt"}, "--path /nowhere/model.pt"),
        ({"num_bins": -1}, "--num-bins is -1"),
        ({"max_src_length": 0}, "--max-src-length is 0"),
        ({"patch_image_size": 0}, "--patch-image-size is 0"),
        ({"eval_cider": True, "eval_args": "{beam: 5}"}, "--eval-args .*JSON"),
        ({"eval_args": "[5]"}, "--eval-args .*JSON object"),
        ({"eval_args": '{"beams": 5}'}, "--eval-args.*beams"),
        ({"eval_args": '{"print_alignment": "hard"}'}, "--print-alignment"),
        ({"eval_args": '{"prefix_size": 1}'}, "--prefix-size"),
        ({"exit_image_threshold": 0.5}, "--exit-image-threshold .*--exit-policy"),
    ],
)
def test_invalid_options_are_rejected_at_setup(data, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        files.setup(TASK, options.pop("data", data), **options)


def test_a_generation_that_fails_midway_is_reported_as_incomplete(tmp_path, checkpoint):
    """With the real command: one line for the error, and a report marked INCOMPLETE."""
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(7)]
    rows[6][4] = NO_IMAGE
    files.write_tsv(folder / "test.tsv", rows)
    results = tmp_path / "results"
    options = ["--batch-size", "2", "--num-workers", "1", "--results-path", str(results)]
    done = command("generate", *files.generate_arguments(TASK, folder, checkpoint, *options))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"fairseq-generate: error: {folder}/test.tsv")
    assert re.search(r"(line |:)7\b.*image", message)
    first, *_, summary = done.stdout.splitlines()
    assert first == "INCOMPLETE, 6 of 7 sentences: Layers and time:"
    assert summary.startswith('INCOMPLETE Exit summary: {"sentences": 6,')
    (results / "log.txt").write_text(done.stdout)
    with pytest.raises(ValueError, match="ends before its result"):
        read_run(results)


def test_other_failures_keep_their_traceback_and_print_no_empty_report(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    state["model"]["decoder.layers.0.fc1.weight"].fill_(1e38)  # finite; NaN in the first layer
    torch.save(state, tmp_path / "broken.pt")
    done = command("generate", *files.generate_arguments(TASK, data, tmp_path / "broken.pt"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "FloatingPointError" in done.stderr and "NaN" in done.stderr
    assert "Layers and time" not in done.stdout
    assert "summary" not in done.stdout


def test_reports_are_printed_after_the_last_batch(data, models, capsys, monkeypatch):
    at_exit, removed = [], []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", removed.append)
    files.generate_rows(files.setup(TASK, data), models, num_workers=2)
    assert capsys.readouterr().out.count("Exit summary") == 1
    assert at_exit == removed and len(removed) == 1


def test_a_last_batch_that_fails_makes_the_report_incomplete(data, models, capsys, monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    task = files.setup(TASK, data)
    inference = task.generate

    def fail_at_the_end(generator, models, sample, **forced):
        if "c10" in sample["uniq_ids"]:
            raise KeyboardInterrupt
        return inference(generator, models, sample, **forced)

    task.generate = fail_at_the_end
    with pytest.raises(KeyboardInterrupt):
        files.generate_rows(task, models)
    (end_generation,) = at_exit
    end_generation()
    assert "INCOMPLETE, 8 of 11 sentences" in capsys.readouterr().out


def test_a_last_batch_of_skipped_rows_is_reported_at_exit(tmp_path, models, capsys, monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    folder = files.write_dictionary(tmp_path / "data")
    rows = [*(files.caption_row(number) for number in range(2)), files.caption_row(2, 1, NO_IMAGE)]
    files.write_tsv(folder / "test.tsv", rows)
    task = files.setup(TASK, folder, skip_bad_rows=True)
    assert len(files.generate_rows(task, models, batch_size=2)) == 2
    assert "Exit summary" not in capsys.readouterr().out
    (end_generation,) = at_exit
    end_generation()
    assert capsys.readouterr().out.splitlines()[-1].startswith('Exit summary: {"sentences": 2,')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exit-trace", "trace.json"], "--exit-trace 'trace.json'.*fairseq-generate"),
        (["--reference-layers", "6,6"], "--reference-layers '6,6'.*fairseq-generate"),
        (["--exit-policy", "similarity"], "--exit-policy similarity.*--eval-cider or --eval-bleu"),
    ],
)
def test_generation_options_are_rejected_if_nothing_is_generated(
    data, checkpoint, tmp_path, options, message
):
    with pytest.raises(UsageError, match=message):
        files.train(TASK, data, tmp_path, *options)
    with pytest.raises(UsageError, match=message):
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "2", *options)

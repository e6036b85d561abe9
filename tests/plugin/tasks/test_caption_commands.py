"""Captioning by fairseq's commands: what they print, and what is refused in a line."""

import gc
import json
import os
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


def command(name, *arguments):
    """fairseq-NAME in a process of its own, as the shell starts it."""
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
    assert lines["report"][0] == "Layers and time:"  # right after the result
    assert "mean image layers" in "".join(lines["report"])
    assert json.loads(lines["report"][-1].removeprefix("Exit summary: "))["sentences"] == 11


def test_ensembles_have_a_report_a_model(data, checkpoint, tmp_path):
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
        (["--patch-image-size", "48"], "trained with --patch-image-size 32, here it is 48"),
        (["--imagenet-default-mean-and-std"], "trained with --imagenet-default-mean-and-std False"),
        (["--exit-policy", "static", "--exit-depths", "1,1,9"], "6 decoder layers"),
    ],
)
def test_what_the_checkpoint_is_not_is_refused(data, checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        files.generate(TASK, data, checkpoint, *options)


@pytest.mark.parametrize("ensemble", [False, True])
def test_exits_that_a_checkpoint_lacks_are_refused_before_it_is_read(
    data, checkpoint, tmp_path, ensemble
):
    """Of the second checkpoint only the arguments can be read, and there is no dictionary."""
    state = torch.load(checkpoint)
    torch.save({"cfg": state["cfg"], "model": "no weights"}, tmp_path / "arguments.pt")
    path = tmp_path / "arguments.pt"
    options = ["--bpe-dir", "/no/dictionary", "--exit-policy", "similarity"]
    command = (TASK, data, f"{checkpoint}:{path}" if ensemble else path, *options)
    with pytest.raises(UsageError, match="--exit-encoder-threshold is for a joint encoder"):
        files.generate(*command, "--exit-encoder-threshold", "0.9")
    joint = ["--model-overrides", "{'split_modalities': False}"]
    with pytest.raises(UsageError, match="--exit-image-threshold needs a model with --split-mod"):
        files.generate(*command, *joint, "--exit-image-threshold", "0.9")
    with pytest.raises(UsageError, match=r"dict\.txt"):  # what comes next
        files.generate(*command, *joint, "--exit-encoder-threshold", "0.9")
    with pytest.raises(UsageError, match=r"--model-overrides '\{' is no Python dictionary"):
        files.generate(*command, "--model-overrides", "{")


def test_another_image_size_can_be_meant(data, checkpoint):
    lines = files.generate(
        *(TASK, data, checkpoint, "--patch-image-size", "48"),
        *("--model-overrides", "{'patch_image_size': 48}"),
    )
    assert len(lines["D"]) == 11


def test_nonsense_is_refused_before_the_checkpoint_is_read(data):
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
        ({"path": "/nowhere/model.pt"}, "--path /nowhere/model.pt: no such checkpoint"),
        ({"num_bins": -1}, "--num-bins -1"),
        ({"max_src_length": 0}, "--max-src-length 0"),
        ({"patch_image_size": 0}, "--patch-image-size 0"),
        ({"eval_cider": True, "eval_args": "{beam: 5}"}, "is not JSON"),
        ({"eval_args": "[5]"}, "JSON object"),
        ({"eval_args": '{"beams": 5}'}, "beams is no generation option"),
        ({"eval_args": '{"print_alignment": "hard"}'}, "--print-alignment"),
        ({"eval_args": '{"prefix_size": 1}'}, "--prefix-size"),
        ({"exit_image_threshold": 0.5}, "without an exit policy"),
    ],
)
def test_nonsense_is_refused_at_once(data, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        files.setup(TASK, options.pop("data", data), **options)


def test_a_generation_that_fails_midway_says_so(tmp_path, checkpoint):
    """By the real command: a line for the error, and no report that looks like the whole."""
    folder = files.write_dictionary(tmp_path / "data")
    rows = [files.caption_row(number) for number in range(7)]
    rows[6][4] = NO_IMAGE
    files.write_tsv(folder / "test.tsv", rows)
    results = tmp_path / "results"
    options = ["--batch-size", "2", "--num-workers", "1", "--results-path", str(results)]
    done = command("generate", *files.generate_arguments(TASK, folder, checkpoint, *options))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"fairseq-generate: error: {folder}/test.tsv, line 7, field 'image'")
    first, *_, summary = done.stdout.splitlines()
    assert first == "INCOMPLETE, 6 of 7 sentences: Layers and time:"
    assert summary.startswith('INCOMPLETE Exit summary: {"sentences": 6,')
    (results / "log.txt").write_text(done.stdout)
    with pytest.raises(ValueError, match="ends before its result"):
        read_run(results)


def test_real_failures_keep_their_traceback_and_no_sentence_makes_no_report(
    data, checkpoint, tmp_path
):
    state = torch.load(checkpoint)
    state["model"]["decoder.layers.0.fc1.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "broken.pt")
    done = command("generate", *files.generate_arguments(TASK, data, tmp_path / "broken.pt"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "FloatingPointError: the model's word scores are not numbers" in done.stderr
    assert "Layers and time" not in done.stdout
    assert "summary" not in done.stdout


def test_the_last_batch_counts_when_it_is_through(data, models, capsys):
    task = files.setup(TASK, data)
    inference = task.generate

    def fail_at_the_end(generator, models, sample, **forced):
        if "c10" in sample["uniq_ids"]:
            raise KeyboardInterrupt
        return inference(generator, models, sample, **forced)

    task.generate = fail_at_the_end
    with pytest.raises(KeyboardInterrupt):
        files.generate_rows(task, models)
    gc.collect()
    assert "INCOMPLETE, 8 of 11 sentences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exit-trace", "trace.json"], "--exit-trace 'trace.json': it is fairseq-generate"),
        (["--exit-policy", "similarity"], "Add --eval-cider or --eval-bleu"),
    ],
)
def test_options_of_generation_are_refused_where_nothing_is_generated(
    data, checkpoint, tmp_path, options, message
):
    with pytest.raises(UsageError, match=message):
        files.train(TASK, data, tmp_path, *options)
    with pytest.raises(UsageError, match=message):
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "2", *options)

"""Numbers that no command can use, and a training that diverges: one line before weights."""

import sys

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK

from ofa_exit.evaluation.efficiency.depth import parse_reference_layers
from ofa_exit.heads.base import parse_exit_layers
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.saved_arguments import parse_overrides
from ofa_exit.policies.head_policy import parse_layers
from ofa_exit.policies.static import parse_depths
from ofa_exit.policies.thresholds import parse_thresholds

data, checkpoint = caption_task.data, caption_task.checkpoint  # fixtures
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("option", "values"),
    {
        "--lr": ("0", "-1", "nan", "1e999", "[0.1,0]"),
        "--clip-norm": ("-1", "nan"),
        "--update-freq": ("0",),
        "--max-update": ("-1",),
        "--required-batch-size-multiple": ("0", "-8"),
        "--max-tokens": ("0",),
        "--patch-image-size": ("0", "1", "15"),
        "--seed": ("-1", str(2**70)),
        "--log-interval": ("0",),
        "--save-interval": ("0",),
        "--shard-id": ("5",),
        "--warmup-updates": ("-1",),
        "--weight-decay": ("nan", "-1"),
        "--adam-eps": ("nan",),
        "--adam-betas": ("(5,5)", "(0.9,)", "0.9", "nan", "exit()"),
        "--max-epoch": ("٣", "1_0"),
        "--dropout": ("nan", "2", "-1"),
        "--resnet-drop-path-rate": ("1",),
        "--encoder-layers": ("0", "1000000"),
        "--decoder-attention-heads": ("0", "3"),
        "--encoder-embed-dim": ("33",),
        "--image-bucket-size": ("0",),
        "--token-bucket-size": ("1", "100000"),
        "--resnet-type": ("resnet9",),
        "--num-bins": ("-1", "1000000000"),
        "--code-dict-size": ("-1", "1000000000"),
        "--eval-args": (DEEP, '{"sampling_topk": "x"}', '{"sampling_topk": 3}'),
    }.items(),
)
def test_training_rejects_them(data, tmp_path, option, values, capsys):
    for value in values:
        with pytest.raises(SystemExit) as error:
            files.train(TASK, data, tmp_path, f"{option}={value}")
        # argparse prints its own errors after the usage.
        is_own = isinstance(error.value, UsageError)
        message = str(error.value) if is_own else capsys.readouterr().err.splitlines()[-1]
        assert option in message and len(message) < 400


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--required-batch-size-multiple", "0"], "--required-batch-size-multiple is 0: give at l"),
        (["--num-shards", "2", "--shard-id", "2"], "--shard-id 2: give 0 to 1 of 2 shards"),
        (["--sampling-topk", "3"], "--sampling-topk is 3: add --sampling"),
        (["--sampling-topp", "0.5"], "--sampling-topp is 0.5: add --sampling"),
        (["--sampling", "--nbest", "5", "--match-source-len"], "exclude each other"),
        (["--sampling"], "--sampling draws --beam 5 hypotheses, and --nbest is 1: give --nbest 5"),
        (["--temperature", "nan"], "--temperature is nan: give a finite number"),
        (["--lenpen", "1e308"], r"--lenpen is 1e\+308: give at most 10"),
        (["--seed", "-1"], "--seed is -1: give at least 0"),
        (["--seed", str(2**70)], "--seed is .*: give at most 4,294,967,295"),
        (["--shard-id", "5"], "--shard-id 5: give 0, or the number of shards by --num-shards"),
        (["--max-len-b", "1000000000"], "--max-len-b is 1000000000: give at most 100,000"),
        (["--beam", "100000"], "--beam is 100000: give at most 10,000"),
        (
            ["--sampling", "--nbest", "5", "--sampling-topk", "100000"],
            "--sampling-topk is 100000, and the vocabulary has 31 words: give at most 31",
        ),
        (
            ["--sampling", "--nbest", "5", "--sampling-topk", "2", "--sampling-topp", "0.5"],
            "--sampling-topk and --sampling-topp exclude each other",
        ),
        (["--diverse-beam-groups", "3"], "--diverse-beam-groups is not supported"),
        (["--print-alignment"], "--print-alignment is not supported"),
        (["--retain-dropout"], "--retain-dropout is not supported"),
        (["--patch-image-size", "0"], "--patch-image-size is 0: give at least 16"),
        (["--model-overrides", DEEP], "is not a Python dictionary"),
        (["--exit-policy", "similarity", "--exit-options", DEEP], "--exit-options .* is not JSON"),
        (["--exit-policy", "static", "--exit-depths", "١,١,١"], "--exit-depths .*whole numbers"),
        (
            ["--model-overrides", "{'patch_image_size': 5000}", "--patch-image-size", "5000"],
            "--patch-image-size is 5000, and the model has positions for 128 pixels",
        ),
    ],
)
def test_generation_rejects_them_before_weights_are_read(
    data, checkpoint, more, message, monkeypatch
):
    monkeypatch.setattr("fairseq.checkpoint_utils.load_model_ensemble", None)
    with pytest.raises(UsageError, match=message) as error:
        files.generate(TASK, data, checkpoint, *more)
    assert len(str(error.value)) < 400


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="argparse keeps the text there")
@pytest.mark.xfail(strict=True, reason="argparse drops --, and hydra raises about the empty list")
def test_a_number_of_two_dashes(data, checkpoint, monkeypatch):
    monkeypatch.setattr("fairseq.checkpoint_utils.load_model_ensemble", None)
    with pytest.raises(UsageError, match="--shard-id"):
        files.generate(TASK, data, checkpoint, "--shard-id=--")


def test_training_rejects_images_that_the_model_has_no_positions_for(data, tmp_path):
    with pytest.raises(UsageError, match=r"--patch-image-size is 5000, .*give at most 128"):
        files.train(TASK, data, tmp_path, "--patch-image-size", "5000")


@pytest.mark.parametrize("text", ["١", "1_0", "²"])
def test_digits_are_ascii(text):
    for parse in (
        lambda one: parse_depths(f"{one},2,2"),
        parse_layers,
        lambda one: parse_exit_layers(one, 6),
        lambda one: parse_reference_layers(f"{one},6"),
    ):
        if text == "1_0" and parse is not parse_layers:
            continue
        with pytest.raises(ValueError):
            parse(text)
    with pytest.raises(ValueError):
        parse_thresholds("٠.٩")


@pytest.mark.parametrize("option", ["--exit-patience", "--beam", "--lenpen"])
@pytest.mark.parametrize("text", ["٢", "1_0", "１"])
def test_numbers_of_options_have_ascii_digits(data, checkpoint, option, text, capsys):
    with pytest.raises(SystemExit):
        files.generate(TASK, data, checkpoint, f"{option}={text}")
    kind = "float" if option == "--lenpen" else "int"
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: invalid {kind} value: '{text}'" in line


def test_overrides_are_quoted_shortly():
    with pytest.raises(ValueError, match="not a Python dictionary") as error:
        parse_overrides(DEEP)
    assert len(str(error.value)) < 300


def test_a_diverged_training_names_its_cause(data, tmp_path):
    with pytest.raises(UsageError, match=r"the training diverged: .*Lower --lr"):
        files.train(TASK, data, tmp_path, "--lr", "1e30", "--disable-validation", updates=9)
    assert (tmp_path / "crash.pt").exists()


def test_options_of_a_task_without_a_name(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    state["cfg"]["task"]["_name"] = None
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"m.pt: the options of the task in .* have no name"):
        files.generate(TASK, data, tmp_path / "m.pt")

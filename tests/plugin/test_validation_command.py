"""fairseq-validate of official checkpoints, whose tasks have other names, and without a size."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace

import fairseq_cli.validate
import pytest
import torch
from fairseq import options
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.paths import ROOT

from ofa_exit.plugin.errors import UsageError

data, checkpoint = caption_task.data, caption_task.checkpoint  # fixtures
FORMS = ("args", "cfg", "namespace")
# What official trainings store besides: options that no class here has, and paths of theirs.
CRITERION = {"label_smoothing": 0.1, "ignore_eos": False, "use_rdrop": False, "sentence_avg": False}
FOREIGN = {"eval_cider": True, "bpe_dir": "../../utils/BPE", "eval_cider_cached_tokens": "no.p"}
SIZES = {"code_dict_size": 0, "num_bins": 0, "patch_image_size": 32}


def official(checkpoint, path, form="cfg", task="caption", criterion=None, **options):
    """Store a checkpoint as official OFA does: ``args``, ``cfg``, or a task's namespace in it."""
    criterion = criterion or "adjust_label_smoothed_cross_entropy"
    state = torch.load(checkpoint)
    own = dict(vars(state["cfg"]["model"]))
    model = {k: v for k, v in own.items() if k.startswith(("encoder", "decoder", "resnet"))}
    model.update(arch="ofa_nano", _name="ofa_nano", split_modalities=True)
    options = {**FOREIGN, **SIZES, **options}
    named = {"_name": task, **options} if form == "cfg" else Namespace(task=task, **options)
    state.update(args=None, cfg=None)
    if form == "args":
        state["args"] = Namespace(**model, **options, **CRITERION, task=task, criterion=criterion)
    else:
        state["cfg"] = {
            "model": Namespace(**model),
            "task": named,
            "criterion": {"_name": criterion, **CRITERION},
        }
    torch.save(state, path)
    return path


@pytest.fixture
def validate(data, monkeypatch):
    """The command itself. Returns the loss that it prints."""

    def run(path, *more, task=TASK, folder=data):
        command = [str(folder), "--user-dir", str(ROOT / "user_dir"), "--task", task, "--cpu"]
        command += ["--path", str(path), "--num-workers", "0", "--log-format", "json", *more]
        monkeypatch.setattr(sys, "argv", ["fairseq-validate", *command])
        values = []
        monkeypatch.setattr(
            "fairseq.logging.progress_bar.JsonProgressBar.print",
            lambda self, stats, **_: values.append(dict(stats)),
        )
        fairseq_cli.validate.cli_main()
        (found,) = values
        return float(found["loss"])

    return run


@pytest.fixture
def loss(checkpoint, validate):
    """Of the checkpoint in this package's form, by OFA's own loss."""
    state = torch.load(checkpoint)
    state["cfg"]["criterion"] = {"_name": "adjust_label_smoothed_cross_entropy", **CRITERION}
    for name in CRITERION.keys() - {"label_smoothing", "sentence_avg"}:
        del state["cfg"]["criterion"][name]
    path = checkpoint.with_name("own.pt")
    torch.save(state, path)
    return validate(path, "--batch-size", "4")


@pytest.mark.parametrize("form", FORMS)
def test_an_official_checkpoint_has_the_loss_of_ours(checkpoint, validate, loss, tmp_path, form):
    path = official(checkpoint, tmp_path / "official.pt", form)
    assert validate(path, "--batch-size", "4") == loss
    assert validate(path) == loss  # without a size of batches


def test_an_unknown_criterion_is_replaced_and_named(checkpoint, validate, loss, tmp_path, caplog):
    path = official(checkpoint, tmp_path / "m.pt", criterion="scst_reward_criterion")
    logger = logging.getLogger("ofa_exit")
    logger.addHandler(caplog.handler)
    try:
        found = validate(path, "--criterion", "mue_loss")
        assert "scst_reward_criterion" not in caplog.text
        assert validate(path) < loss  # without label smoothing
        assert "criterion scst_reward_criterion, which is unknown" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
    assert found > 0


def test_weights_alone_validate(checkpoint, validate, tmp_path):
    torch.save(torch.load(checkpoint)["model"], tmp_path / "bare.pt")
    more = ["--patch-image-size", "32", "--code-dict-size", "0", "--num-bins", "0"]
    overrides = ["--model-overrides", "{'split_modalities': True}"]
    assert validate(tmp_path / "bare.pt", *more, *overrides) > 0


@pytest.mark.parametrize("form", FORMS)
def test_other_options_than_in_training_are_rejected(checkpoint, validate, tmp_path, form):
    path = official(checkpoint, tmp_path / "m.pt", form)
    with pytest.raises(UsageError, match=r"image-size is 48, but .*m.pt was trained with 32"):
        validate(path, "--patch-image-size", "48")
    meant = ("--model-overrides", "{'patch_image_size': 48}")
    assert validate(path, "--patch-image-size", "48", *meant) > 0


@pytest.mark.parametrize(
    ("stored", "task", "row", "more"),
    [
        ("snli_ve", "mue_snli_ve", files.entailment_row, ["--eval-acc"]),
        ("vqa_gen", "mue_snli_ve", files.entailment_row, []),
        ("mue_caption", "mue_snli_ve", files.entailment_row, []),
    ],
)
def test_the_task_given_is_the_one_that_validates(
    checkpoint, validate, tmp_path, stored, task, row, more
):
    path = official(checkpoint, tmp_path / "m.pt", "cfg", stored)
    folder = files.write_dictionary(tmp_path / "data")
    files.write_tsv(folder / "valid.tsv", [row(number) for number in range(5)])
    assert validate(path, *more, task=task, folder=folder) > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (12000, None)),
        (["--batch-size", "3"], (None, 3)),
        (["--max-tokens", "500"], (500, None)),
    ],
)
def test_sizes_of_batches_that_are_given_stay(given, expected):
    command = ["data", "--task", TASK, "--path", "m.pt", *given]
    args = options.parse_args_and_arch(options.get_validation_parser(), command)
    assert (args.max_tokens, args.batch_size) == expected
    # Those overwrite the checkpoint's options.
    parser = options.get_validation_parser()
    only = vars(options.parse_args_and_arch(parser, command, suppress_defaults=True))
    assert (only.get("max_tokens"), only.get("batch_size")) == (expected if given else (None, None))

"""Exits trained without labels: the frozen model's own captions are fed."""

import json
import logging
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import task_files as files

from ofa_exit.plugin.criterions.blipee import BlipeeAdversarial, BlipeeConfig
from ofa_exit.plugin.criterions.own_captions import with_own_captions
from ofa_exit.plugin.errors import UsageError

TASK = "mue_caption"
EXITS = ["--criterion", "blipee_adversarial", "--exit-layers", "2,4"]
EXITS += ["--feature-classifier-dim", "16"]
DISTILL = ["--blipee-mode", "distill"]


def unlabelled(number: int) -> list[str]:
    row = files.caption_row(number)
    return [*row[:2], "", *row[3:]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    """A folder whose rows have no captions, but for two of train.tsv; and a captioning model."""
    folder = tmp_path_factory.mktemp("own")
    labelled = files.caption_folder(folder / "labelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        checkpoint = files.train(TASK, labelled, folder / "plain", updates=30)
    data = files.write_dictionary(folder / "data")
    rows = [files.caption_row(n) if n in (2, 7) else unlabelled(n) for n in range(12)]
    files.write_tsv(data / "train.tsv", rows)
    files.write_tsv(data / "valid.tsv", [unlabelled(n) for n in range(4)])
    return data, checkpoint


@pytest.fixture(scope="module")
def parts(plain):
    """Task, model with exits in training mode, and criterion."""
    data, checkpoint = plain
    task = files.setup(TASK, data)
    task._captions_optional = True
    state, exits = torch.load(checkpoint), {"exit_layers": "2,4", "dropout": 0.0}
    model = task.build_model(Namespace(**{**vars(state["cfg"]["model"]), **exits}))
    model.load_state_dict(state["model"])
    config = BlipeeConfig(blipee_mode="distill", feature_classifier_dim=16, sentence_avg=False)
    criterion = BlipeeAdversarial.build_criterion(config, task).train()
    criterion.prepare_training(model)
    return task, model.train(), criterion


def batch(task, rows: range) -> dict:
    task.load_dataset("train")
    dataset = task.dataset("train")
    return dataset.collater([dataset[number] for number in rows])


def test_rows_without_a_caption_have_no_target_words(parts):
    task, _, _ = parts
    sample = batch(task, range(4))
    assert [bool(references) for references in sample["references"]] == [False, False, True, False]
    eos, pad = task.dictionary.eos(), task.dictionary.pad()
    assert sample["target"][0].tolist() == [eos, pad, pad, pad]
    assert sample["ntokens"] == 3 + 4


def test_the_models_own_captions_are_fed(parts):
    task, model, criterion = parts
    sample = batch(task, range(4))
    given = {name: sample[name].clone() for name in ("target", "id")}
    hyps = task.generate(task.validation_generator(model), [model], sample)
    model.train()
    filled = with_own_captions(task, model, sample)
    pad, bos = task.dictionary.pad(), task.dictionary.bos()
    for row in range(4):
        target = filled["target"][row]
        target = target[target != pad]
        prev_output = filled["net_input"]["prev_output_tokens"][row, : len(target)]
        assert prev_output.tolist() == [bos, *target[:-1].tolist()]
        if row == 2:  # its own label
            assert task.text(target) == "a blue square"
        else:
            assert torch.equal(target, hyps[row][0]["tokens"]) and len(target) > 1
    assert filled["ntokens"] == int(filled["target"].ne(pad).sum())
    assert filled["target"].shape == filled["net_input"]["prev_output_tokens"].shape
    # Neither the batch nor the modes of the model have changed.
    assert all(torch.equal(sample[name], value) for name, value in given.items())
    assert model.training and model.decoder.exits["2"].training and not model.encoder.training

    # The loss is that of labelled rows with these captions.
    loss, size, _ = criterion(model, sample)
    captions = [task.text(target[target != pad]) for target in filled["target"]]
    labelled, wanted_size, _ = criterion(model, {**filled, "references": [[c] for c in captions]})
    assert size == wanted_size == filled["ntokens"]
    torch.testing.assert_close(loss, labelled)


def test_own_captions_follow_the_prompt(plain, parts):
    _, model, criterion = parts
    task = files.setup(TASK, plain[0], caption_prompt="a square of")
    task._captions_optional = True
    sample = batch(task, range(2))
    filled = with_own_captions(task, model, sample)
    hyps = task.generate(task.validation_generator(model), [model], sample)
    model.train()
    bos, pad, prompt = task.dictionary.bos(), task.dictionary.pad(), task.caption_prompt.tolist()
    for row in range(2):
        caption = hyps[row][0]["tokens"].tolist()
        length = len(prompt) + len(caption)
        prev_output = filled["net_input"]["prev_output_tokens"][row, :length]
        assert prev_output.tolist() == [bos, *prompt, *caption[:-1]]
        assert filled["target"][row, :length].tolist() == [pad] * len(prompt) + caption
    assert criterion(model, filled)[0].isfinite()


def test_labelled_batches_are_left_alone(parts):
    task, model, _ = parts
    sample = batch(task, range(2, 3))
    assert with_own_captions(task, model, sample) is sample


@pytest.mark.parametrize(
    "precision", [[], ["--memory-efficient-fp16"], ["--amp"]], ids=["fp32", "fp16", "amp"]
)
def test_training_without_labels_through_the_command(
    precision, plain, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("sys.argv", ["test"])
    caplog.set_level(logging.INFO)
    data, init = plain
    more = [*EXITS, *DISTILL, "--finetune-from-model", str(init), "--log-interval", "1"]
    more += precision
    trained = files.train(TASK, data, tmp_path, *more, updates=3)
    logs = [
        json.loads(r.getMessage()) for r in caplog.records if r.name in ("train_inner", "valid")
    ]
    assert [key for key in ("word_loss", "gen_loss", "fc_loss") if key not in logs[0]] == []
    assert "valid_word_loss" in logs[-1]  # rows of valid.tsv have no captions, either
    before, after = (torch.load(path, weights_only=True)["model"] for path in (init, trained))
    if "--memory-efficient-fp16" in precision:  # half in memory, float32 in the file
        before = {n: v.half().float() if v.is_floating_point() else v for n, v in before.items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for name in (n for n in after if n.startswith("decoder.exits.2.") and "fc1.weight" in n):
        layer = name.replace("decoder.exits.2.", "decoder.layers.2.")
        assert not torch.equal(after[name], before[layer])


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ([*EXITS, "--blipee-mode", "supervised"], "train"),
        ([], "train"),  # mue_loss
        ([*EXITS, *DISTILL, "--eval-cider"], "valid"),  # which needs references
    ],
    ids=["supervised", "mue_loss", "eval-cider"],
)
def test_labels_are_needed_otherwise(plain, tmp_path, monkeypatch, options, file):
    monkeypatch.setattr("sys.argv", ["test"])
    data, init = plain
    with pytest.raises(
        UsageError, match=rf"{file}\.tsv, line \d+, field 'caption': the field is empty"
    ):
        files.train(TASK, data, tmp_path, *options, "--finetune-from-model", str(init))

"""Checkpoints whose arguments or tables of positions cannot be those of their weights."""

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK

from ofa_exit.plugin.errors import UsageError

data, checkpoint = caption_task.data, caption_task.checkpoint  # fixtures


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("dropout", float("nan"), "is nan: give a finite number, by --model-overrides"),
        ("encoder_layers", "x", "is 'x': give a number"),
        ("encoder_layers", 5, r"is 5, but that of the weights is 6: give --model-overrides \"{"),
        ("decoder_layers", 10**6, "is 1000000: give at most 1,000"),
        ("decoder_layers", 999, "is 999, but that of the weights is 6"),
        ("encoder_attention_heads", 0, "is 0: give at least 1"),
        ("encoder_embed_dim", 32.0, "is 32.0: give a whole number"),
        ("image_bucket_size", 0, "is 0: give at least 1"),
        ("token_bucket_size", 1, "is 1: give at least 2"),
        ("resnet_type", "resnet9", "is 'resnet9': give one of resnet_nano"),
        ("resnet_type", [1], r"is \[1\]: give one of resnet_nano"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_arguments_are_rejected_before_weights_are_read(
    data, checkpoint, tmp_path, name, value, problem, given, monkeypatch
):
    """In the checkpoint, and by --model-overrides."""
    monkeypatch.setattr("fairseq.checkpoint_utils.load_model_ensemble", None)
    path, more = checkpoint, []
    if given:
        more = ["--model-overrides", repr({name: value})]
        if value != value:  # no literal
            return
    else:
        path = tmp_path / "m.pt"
        state = torch.load(checkpoint)
        setattr(state["cfg"]["model"], name, value)
        torch.save(state, path)
    place = "--model-overrides: " if given else rf"{path}: its model's "
    problem = problem.removesuffix(", by --model-overrides") if given else problem
    with pytest.raises(UsageError, match=f"^{place}{name} {problem}"):
        files.generate(TASK, data, path, *more)


@pytest.mark.parametrize("change", ["a row more", "a row less"])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.embed_positions.weight",
        "decoder.embed_positions.weight",
        "encoder.embed_image_positions.weight",
        "decoder.embed_image_positions.weight",
        "encoder.image_rel_pos_table_list.0.weight",
        "encoder.token_rel_pos_table_list.0.weight",
    ],
)
def test_tables_of_positions_with_another_number_of_rows(data, checkpoint, tmp_path, name, change):
    state = torch.load(checkpoint)
    table = state["model"][name]
    state["model"][name] = table[:-1] if change == "a row less" else torch.cat([table, table[:1]])
    torch.save(state, tmp_path / "m.pt")
    task = files.setup(TASK, data)
    with pytest.raises(UsageError, match=rf"m\.pt: the checkpoint does not fit.* {name}: "):
        files.load(task, tmp_path / "m.pt")

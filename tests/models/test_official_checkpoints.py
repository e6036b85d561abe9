"""Checkpoints in the format of OFA's release, loaded by fairseq."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from helpers.small_models import nano
from helpers.task_files import NANO, caption_folder, generate, train

from ofa_exit.cli.export import export
from ofa_exit.models.ofa import OFAModel

RELEASED = dict(
    encoder_normalize_before=True,
    decoder_normalize_before=True,
    layernorm_embedding=True,
    patch_layernorm_embedding=True,
    code_layernorm_embedding=True,
    add_type_embedding=True,
    scale_attn=True,
    scale_fc=True,
    scale_heads=True,
    disable_entangle=True,
    scale_resids=False,
    entangle_position_embedding=False,
    share_all_embeddings=True,
    share_decoder_input_output_embed=True,
    relu_dropout=0.0,
    pooler_classifier="mlp",
    sample_patch_num=196,
    lr=[3e-5],
)
TABLES = ("token", "image")
# fairseq's own model arguments, which OFA's encoder and decoder have as well.
SHARED = {"share_decoder_input_output_embed"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("official")
    data = caption_folder(folder / "data")
    return data, train("mue_caption", data, folder / "run", updates=2)


def official(trained_path: Path, path: Path, form: str) -> Path:
    """Save the same weights with an official file's arguments, under ``args`` or ``cfg``."""
    state = torch.load(trained_path, weights_only=True)
    own = state["cfg"]["model"]
    own = vars(own) if isinstance(own, Namespace) else dict(own)
    sizes = {k: v for k, v in own.items() if k.startswith(("encoder_", "decoder_", "resnet_"))}
    sizes.update({k: own[k] for k in own if k.startswith(("max_", "token_", "image_", "code_"))})
    arguments = Namespace(
        **{**sizes, **RELEASED, "arch": "ofa_nano", "task": "caption", "_name": "ofa_nano"},
        criterion="adjust_label_smoothed_cross_entropy",
        optimizer="adam",
        lr_scheduler="polynomial_decay",
        split_modalities=True,
    )
    new = {"model": state["model"], "args": None, "cfg": None, "extra_state": {}}
    new["optimizer_history"] = state["optimizer_history"]
    if form == "args":
        new["args"] = arguments
    else:
        new["cfg"] = {**state["cfg"], "model": arguments, "task": Namespace(task="caption")}
    torch.save(new, path)
    return path


@pytest.mark.parametrize("form", ["args", "cfg"])
def test_arguments_are_read_from_args_and_cfg(trained, tmp_path, form, caplog):
    data, checkpoint = trained
    path = official(checkpoint, tmp_path / "official.pt", form)
    ours = generate("mue_caption", data, checkpoint, "--gen-subset", "test")
    theirs = generate("mue_caption", data, path, "--gen-subset", "test")
    assert theirs["H"] == ours["H"] and len(ours["H"]) == 11
    (line,) = {r.message for r in caplog.records if "unknown model arguments" in r.message}
    foreign = {"pooler_classifier", "relu_dropout", "sample_patch_num"}
    assert foreign <= set(line.split("ignored: ")[1].split(", ")) <= foreign | SHARED


def test_finetuning_and_restoring_start_from_official_weights(trained, tmp_path):
    """With --finetune-from-model and with --restore-file."""
    data, checkpoint = trained
    path = official(checkpoint, tmp_path / "official.pt", "args")
    start = torch.load(path, weights_only=True)["model"]
    for option in (
        ["--finetune-from-model", str(path)],
        ["--restore-file", str(path), "--reset-optimizer", "--reset-dataloader", "--reset-meters"],
    ):
        saved = train(
            "mue_caption", data, tmp_path / option[0][2:], *option, "--lr", "1e-12", updates=1
        )
        weights = torch.load(saved, weights_only=True)["model"]
        name = "decoder.layers.0.fc1.weight"
        torch.testing.assert_close(weights[name], start[name], rtol=0, atol=1e-6)


def test_an_interrupted_run_resumes_mid_epoch(trained, tmp_path):
    """Two updates, then two more from the checkpoint, equal four updates."""
    data, _ = trained
    options = ["--lr-scheduler", "fixed", "--seed", "3", "--save-interval-updates", "2"]
    whole = train("mue_caption", data, tmp_path / "whole", *options, updates=4, resumable=True)
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_1_2.pt", tmp_path / "resumed/checkpoint_last.pt")
    resumed = train("mue_caption", data, tmp_path / "resumed", *options, updates=4, resumable=True)
    one, two = (torch.load(path, weights_only=True) for path in (whole, resumed))
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_an_exported_checkpoint_generates_the_same_captions(trained, tmp_path):
    data, checkpoint = trained
    export(checkpoint, tmp_path / "shipped.pt")
    shipped = torch.load(tmp_path / "shipped.pt", weights_only=True)
    assert "last_optimizer_state" not in shipped and not shipped["extra_state"]
    assert str(data).encode() not in (tmp_path / "shipped.pt").read_bytes()
    ours = generate("mue_caption", data, checkpoint)
    assert generate("mue_caption", data, tmp_path / "shipped.pt")["H"] == ours["H"]
    train(
        *["mue_caption", data, tmp_path / "tuned", "--finetune-from-model"],
        str(tmp_path / "shipped.pt"),
        updates=1,
    )


def test_a_misfit_names_the_entries(trained, tmp_path):
    data, checkpoint = trained
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["decoder.layers.0.fc1.weight"] = torch.zeros(7, 32)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"decoder.layers.0.fc1.weight: checkpoint \(7, 32\)"):
        generate("mue_caption", data, tmp_path / "broken.pt")


def test_a_checkpoint_loads_into_the_registered_model(trained):
    (model,), _, task = load_model_ensemble_and_task([str(trained[1])])
    assert isinstance(model, OFAModel) and len(task.target_dictionary) and NANO


def test_integer_buffers_are_the_official_ones():
    """Bucket tables, the decoder's image positions, and the batch norms' counts."""
    official = {f"{part}.{name}_rp_bucket" for part in ("encoder", "decoder") for name in TABLES}
    official.add("decoder.image_position_idx")
    state = nano(exit_layers="2,4", exit_head="transformer").state_dict()
    found = {name for name, value in state.items() if not value.is_floating_point()}
    assert official <= found
    assert all(name.endswith(".num_batches_tracked") for name in found - official)

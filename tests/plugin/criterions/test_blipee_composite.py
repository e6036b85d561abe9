"""fairseq's composite optimizer: an optimizer and a schedule for each group of parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq.optim import build_optimizer
from helpers.blipee_samples import GROUPS, criterion, model
from helpers.paths import ROOT
from helpers.small_models import training_batch
from helpers.task_files import caption_folder, train
from omegaconf import OmegaConf

from ofa_exit.plugin.errors import UsageError


def settings() -> dict:
    """Two groups with separate learning rates, as in a YAML file."""
    adam = {"_name": "adam", "adam_eps": 1e-8, "weight_decay": 0.1, "lr": [0.01]}
    adam.update(tpu=False, use_old_adam=False, fp16_adam_stats=False)
    schedule = {"_name": "fixed", "warmup_updates": 0, "lr_shrink": 0.5, "force_anneal": None}
    return {
        group: {
            "lr_float": rate,
            "optimizer": {**adam, "adam_betas": "(0.9, 0.999)"},
            "lr_scheduler": schedule,
        }
        for group, rate in zip(sorted(GROUPS), (0.002, 0.02), strict=True)
    }


def composite(params):
    return build_optimizer(
        OmegaConf.create({"_name": "composite", "groups": settings(), "dynamic_groups": False}),
        params,
    )


def test_a_step_changes_one_group_only():
    """Parameters, moments and step counts, at the group's learning rate."""
    built, sample = model().train(), training_batch()
    loss = criterion(blipee_updates="alternate")
    params = [p for p in built.parameters() if p.requires_grad]
    optimizer = composite(params)

    def snapshot(group: str) -> list[torch.Tensor]:
        adam = optimizer.optimizers[group].optimizer
        params = adam.param_groups[0]["params"]
        values = [v for p in params for v in (p, *adam.state[p].values())]
        return [torch.as_tensor(value).detach().clone() for value in values]

    for update in range(4):
        (group,) = loss.get_groups_for_update(update)
        (other,) = GROUPS - {group}
        built.set_num_updates(update)
        before = {g: snapshot(g) for g in GROUPS}
        optimizer.zero_grad()
        optimizer.backward(loss(built, sample)[0])
        loss.optimizer_step(optimizer, update)
        after = {g: snapshot(g) for g in GROUPS}
        assert all(torch.equal(a, b) for a, b in zip(before[other], after[other], strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(before[group], after[group]))
    rates = {g: o.get_lr() for g, o in optimizer.optimizers.items()}
    assert rates == {g: given["lr_float"] for g, given in settings().items()}


def test_groups_without_settings_are_named():
    params = [p for p in model().parameters() if p.requires_grad]
    cfg = OmegaConf.create({"_name": "composite", "groups": {}, "dynamic_groups": False})
    with pytest.raises(UsageError, match=r"exit_transformers, feature_classifiers.*YAML"):
        build_optimizer(cfg, params)


def test_hydra_trains_exits_by_a_yaml_configuration(tmp_path):
    """Every update trains both groups, each at its rate. A resumed run gives the same bits."""
    data = caption_folder(tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        plain = train("mue_caption", data, tmp_path / "plain", updates=1)
    logged = hydra(tmp_path, data, plain, "stopped", updates=2)
    hydra(tmp_path, data, plain, "stopped", updates=4)
    hydra(tmp_path, data, plain, "straight", updates=4)
    assert '"lr_exit_transformers": "0.002"' in logged
    assert '"lr_feature_classifiers": "0.02"' in logged

    straight, stopped = (load(tmp_path / name) for name in ("straight", "stopped"))
    init = load(tmp_path / "plain")["model"]
    assert all(torch.equal(init[name], straight["model"][name]) for name in init)
    moved = {name for name in straight["model"] if name not in init}
    assert any(name.startswith("decoder.exits.2.") for name in moved)
    for name, value in straight["model"].items():
        assert torch.equal(value, stopped["model"][name]), name
    states = straight["last_optimizer_state"]
    assert set(states) >= GROUPS
    for group in GROUPS:
        assert {int(state["step"]) for state in states[group]["state"].values()} == {4}


def load(folder: Path) -> dict:
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


def hydra(folder: Path, data: Path, plain: Path, name: str, updates: int) -> str:
    """Run fairseq-hydra-train of the exits in a separate process; its output and logs."""
    configuration = {
        "common": {"cpu": True, "log_format": "json", "log_interval": 1, "seed": 1},
        "task": {
            "_name": "mue_caption",
            "data": str(data),
            "patch_image_size": 32,
            "code_dict_size": 0,
            "num_bins": 0,
        },
        "criterion": {"_name": "blipee_adversarial", "feature_classifier_dim": 16},
        "dataset": {"batch_size": 4, "num_workers": 0, "disable_validation": True},
        "optimization": {"max_update": updates, "lr": [0.01]},
        "optimizer": {"_name": "composite", "groups": settings()},
        "lr_scheduler": {"_name": "pass_through"},
        "checkpoint": {
            "save_dir": str(folder / name),
            "finetune_from_model": str(plain),
            "no_epoch_checkpoints": True,
        },
        "model": {
            "_name": "ofa_nano",
            **dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim"), 32),
            **dict.fromkeys(("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"), 64),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
            "resnet_width": 8,
            "split_modalities": True,
            "exit_layers": "2,4",
        },
    }
    configuration["common"]["user_dir"] = str(ROOT / "user_dir")
    # YAML reads JSON.
    (folder / f"{name}.yaml").write_text("# @package _group_\n" + json.dumps(configuration))
    done = subprocess.run(
        [
            *[sys.executable, "-m", "fairseq_cli.hydra_train"],
            *["--config-dir", str(folder), "--config-name", name],
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logs = "".join(path.read_text() for path in folder.rglob("*.log"))
    return done.stdout + done.stderr + logs

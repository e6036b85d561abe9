"""Learning rate schedules, at the updates around their boundaries and through the command."""

import json
import logging

import pytest
import torch
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from helpers.task_files import caption_folder, train
from omegaconf import OmegaConf

import ofa_exit.plugin  # noqa: F401


def rates(updates: range, **options) -> dict[int, float]:
    """The learning rate of each update, counted from 0."""
    common = {"lr": [1e-5], "warmup_init_lr": -1, "min_lr": 0.0, "lr_decay": 0.5}
    settings = OmegaConf.create({"_name": "step_from_start", **common, **options})
    adam = {"_name": "adam", "lr": [1e-5], "adam_betas": "(0.9, 0.999)", "adam_eps": 1e-8}
    adam |= {"weight_decay": 0.0, "tpu": False, "use_old_adam": False, "fp16_adam_stats": False}
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = build_optimizer(OmegaConf.create(adam), weights)
    scheduler = build_lr_scheduler(settings, optimizer)
    found = {}
    for update in updates:
        returned = scheduler.step_update(update)
        assert optimizer.get_lr() == returned
        found[update] = returned
    return found


def test_the_rate_halves_three_epochs_after_the_first_update():
    """BLIPEE's schedule: warm-up 500; 400 updates per epoch, so halving at 1200, 2400 and 3600."""
    found = rates(range(4000), lr_deacy_period=1200, warmup_updates=500)
    assert found[0] == 0 and found[250] == pytest.approx(5e-6)
    assert found[499] == pytest.approx(499 / 500 * 1e-5)
    shown = {n: found[n] for n in (500, 1199, 1200, 1201, 1699, 1700, 2399, 2400, 3599, 3600, 3999)}
    assert shown == {
        **dict.fromkeys((500, 1199), 1e-5),
        **dict.fromkeys((1200, 1201, 1699, 1700, 2399), 5e-6),
        **dict.fromkeys((2400, 3599), 2.5e-6),
        **dict.fromkeys((3600, 3999), 1.25e-6),
    }


def test_without_warm_up_it_is_the_step_schedule():
    options = {"lr_deacy_period": 3, "warmup_updates": 0}
    ours = rates(range(10), **options)
    assert ours == rates(range(10), **options, _name="step")
    assert [ours[n] for n in (2, 3, 9)] == [1e-5, 5e-6, 1.25e-6]


def test_a_training_and_its_continuation_have_the_same_rates(tmp_path, monkeypatch, caplog):
    """Three updates per epoch, so the rate halves at update 9, although the warm-up is 2."""
    monkeypatch.setattr("sys.argv", ["test"])
    data = caption_folder(tmp_path / "data")
    options = ["--lr-scheduler", "step_from_start", "--lr-decay", "0.5", "--lr-deacy-period", "9"]
    options += ["--warmup-updates", "2", "--log-interval", "1", "--disable-validation"]

    def logged(updates: int) -> dict[int, float]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            train("mue_caption", data, tmp_path / "out", *options, updates=updates, resumable=True)
        lines = [r.getMessage() for r in caplog.records if r.name == "train_inner"]
        return {int(line["num_updates"]): float(line["lr"]) for line in map(json.loads, lines)}

    # fairseq logs the rate of the next update.
    found = {**logged(8), **logged(11)}
    assert found == {
        1: 0.0015,
        **dict.fromkeys(range(2, 9), 0.003),
        **dict.fromkeys((9, 10, 11), 0.0015),
    }

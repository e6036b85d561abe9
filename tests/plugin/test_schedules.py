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
from ofa_exit.plugin.errors import UsageError


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


# ------------------------------------------------------------------ --warmup-ratio


def logged_rates(caplog, tmp_path, *more: str, updates: int = 0) -> list[float]:
    data = caption_folder(tmp_path / "data")
    arguments = [
        *["--lr-scheduler", "polynomial_decay", "--lr", "0.01", "--disable-validation"],
        *["--log-interval", "1", "--split-modalities", *more],
    ]
    caplog.set_level(logging.INFO)
    caplog.clear()
    train("mue_caption", data, tmp_path / "run", *arguments, updates=updates, resumable=True)
    records = [record.getMessage() for record in caplog.records if record.name == "train_inner"]
    return [float(json.loads(line)["lr"]) for line in records]


def test_warm_up_is_a_share_of_all_updates(caplog, tmp_path):
    """12 rows in batches of 4, two per update: 5 epochs of 2 updates. 0.4 of 10 updates warm up.

    The log shows the rate of the next update.
    """
    options = ["--warmup-ratio", "0.4", "--update-freq", "2", "--end-learning-rate", "0.001"]
    rates = logged_rates(caplog, tmp_path, *options, "--max-epoch", "5")
    decay = [0.001 + 0.009 * (1 - done / 6) for done in range(1, 7)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, *decay], rel=1e-3)
    resumed = logged_rates(caplog, tmp_path, *options, "--max-epoch", "10")
    # 20 updates now, of which 8 warm up.
    assert resumed[0] == pytest.approx(0.001 + 0.009 * (1 - 3 / 12), rel=1e-3)


def test_the_length_of_a_training_by_updates(caplog, tmp_path):
    rates = logged_rates(caplog, tmp_path, "--warmup-ratio", "0.5", updates=4)
    assert rates == pytest.approx([0.005, 0.01, 0.005, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--warmup-ratio", "1"], "--warmup-ratio is 1.0"),
        (["--warmup-ratio", "0.1", "--warmup-updates", "2"], "not both"),
        (["--warmup-ratio", "0.1"], "needs the length of the training: give --max-epoch"),
        (["--max-epoch", "2"], "needs the number of updates: give --warmup-ratio"),
    ],
)
def test_schedules_without_a_length_are_rejected(more, message, caplog, tmp_path):
    with pytest.raises(UsageError, match=message):
        logged_rates(caplog, tmp_path, *more)

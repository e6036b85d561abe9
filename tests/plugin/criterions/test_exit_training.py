"""Training exits by fairseq-train: from a plain checkpoint, resumed, and then generated from."""

import json

import pytest
import torch
from fairseq.trainer import Trainer
from helpers import task_files as files

from ofa_exit.cli.export import export

TASK = "mue_caption"
HEADS = ["--exit-head", "linear", "--exit-layers", "all"]
METHODS = {
    "deebert": ["exit_heads_loss", *HEADS],
    "pabee": ["multi_exit_loss", *HEADS],
    "pabee_shared": ["multi_exit_loss"],
    "leeblip": ["exit_heads_loss", *HEADS, "--distil", "final"],
    "leebert": ["leebert_loss", *HEADS, "--learned-weights", "cross", "--weights-interval", "1"],
    "leebert_single": ["leebert_loss", *HEADS, "--learned-weights", "single"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.caption_folder(tmp_path_factory.mktemp("caption"))


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """An exported checkpoint of the backbone, which has no criterion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        folder = tmp_path_factory.mktemp("plain")
        export(files.train(TASK, data, folder, "--disable-validation"), folder / "plain.pt")
    return folder / "plain.pt"


def train(data, plain, folder, method: str, updates: int):
    name, *options = METHODS[method]
    return files.train(
        *(TASK, data, folder, "--criterion", name, *options, "--label-smoothing", "0.1"),
        *("--finetune-from-model", str(plain), "--log-interval", "1"),
        updates=updates,
        resumable=True,
    )


def logged(messages: list[str], key: str) -> list[float]:
    """The values of a key in fairseq's JSON lines."""
    lines = [json.loads(text) for text in messages if text.startswith('{"')]
    return [float(line[key]) for line in lines if key in line]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "leebert_single"])
def test_training_resumes_and_generates(method, data, plain, tmp_path, caplog):
    caplog.set_level("INFO")
    start = torch.load(plain)["model"]
    states = [
        torch.load(train(data, plain, tmp_path / "run", method, updates)) for updates in (3, 6)
    ]
    assert [s["optimizer_history"][-1]["num_updates"] for s in states] == [3, 6]
    first, second = (state["model"] for state in states)
    frozen = METHODS[method][0] == "exit_heads_loss"
    name = "decoder.layers.0.fc1.weight"
    assert torch.equal(first[name], start[name]) == frozen
    if method != "pabee_shared":
        assert "; --exit-head linear)" in caplog.text
        name = "decoder.exits.2.output_projection.weight"
        assert not torch.equal(first[name], start["decoder.output_projection.weight"])
        assert not torch.equal(first[name], second[name])
    assert all(value > 0 for value in logged(caplog.messages, "train_loss_layer_2"))
    assert len(logged(caplog.messages, "valid_loss")) >= 1

    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    options = ["--exit-policy", "confidence", "--exit-alpha", "0.5"]
    options = options if method != "pabee_shared" else []
    assert sorted(files.generate(TASK, data, checkpoint, *options)["D"]) == list(range(11))


@pytest.mark.parametrize("method", ["leebert", "leebert_single"])
def test_learned_weights_resume_with_their_optimizer(method, data, plain, tmp_path, caplog):
    """In two parts as in one: fairseq restores the order of the data."""
    caplog.set_level("INFO")
    whole = torch.load(train(data, plain, tmp_path / "whole", method, 6))["criterion"]
    values = logged(caplog.messages, "weight_layer_1")
    train(data, plain, tmp_path / "parts", method, 3)
    parts = torch.load(train(data, plain, tmp_path / "parts", method, 6))["criterion"]
    for state in (whole, parts):
        (moments,) = state["loss_weights._extra_state"]["state"].values()
        assert int(moments["step"]) == 6
    torch.testing.assert_close(parts["loss_weights.alpha"], whole["loss_weights.alpha"])
    assert whole["loss_weights.alpha"].abs().min() > 0
    assert values[0] == 1.0 and values[-1] != 1.0


def test_the_optimizer_of_fairseq_has_no_learned_weights(data, plain, tmp_path, monkeypatch):
    found = []
    build = Trainer._build_optimizer

    def watched(self):
        build(self)
        found.append((list(self.optimizer.params), self.get_criterion().loss_weights.alpha))

    monkeypatch.setattr(Trainer, "_build_optimizer", watched)
    train(data, plain, tmp_path, "leebert", 1)
    assert found and all(p is not alpha for params, alpha in found for p in params)

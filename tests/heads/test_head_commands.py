"""DeeCap and DEED through fairseq's commands: training from a plain checkpoint, and generation."""

import json

import pytest
import torch
from helpers import task_files as files

METHODS = {
    "deecap": ["--criterion", "deecap_loss", "--exit-head", "imitation"],
    "deecap_all": ["--criterion", "deecap_loss", "--exit-head", "imitation_all"],
    "deed": [
        *["--criterion", "multi_exit_loss", "--exit-head", "adapter"],
        *["--layer-weights", "uniform"],
    ],
    "frozen": ["--criterion", "exit_heads_loss", "--exit-head", "imitation"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.caption_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    options = ["--layer-weights", "last"]
    return files.train("mue_caption", data, tmp_path_factory.mktemp("plain"), *options, updates=2)


@pytest.mark.parametrize("method", METHODS)
def test_train_and_generate(data, plain, tmp_path, method):
    checkpoint = files.train(
        *("mue_caption", data, tmp_path, *METHODS[method], "--exit-layers", "all"),
        *("--finetune-from-model", str(plain)),
        updates=4,
    )
    saved, before = (torch.load(path, weights_only=True) for path in (checkpoint, plain))
    assert saved["cfg"]["model"].exit_layers == "1,2,3,4,5"
    name = "decoder.layers.5.fc1.weight"
    changed = not torch.equal(saved["model"][name], before["model"][name])
    assert changed == (method != "frozen")
    assert any(name.startswith("decoder.exits.5.") for name in saved["model"])
    lines = {}
    for alpha in ("0", "1"):
        trace = tmp_path / f"{alpha}.jsonl"
        lines[alpha] = files.generate(
            *("mue_caption", data, checkpoint, "--beam", "2", "--exit-policy", "confidence"),
            *("--exit-alpha", alpha, "--exit-kv", "recompute", "--exit-trace", str(trace)),
        )
        layers = {
            layer
            for record in map(json.loads, trace.read_text().splitlines())
            for hypothesis in record["hypotheses"]
            for layer in hypothesis["layers"]
        }
        assert layers == {1 if alpha == "0" else 6}
    full = files.generate("mue_caption", data, checkpoint, "--beam", "2")
    assert full["H"] == lines["1"]["H"]  # α = 1 never exits, and the last layer has no head
    assert any("flop_reduction" in line for line in lines["0"]["report"])


def test_deecap_needs_imitation_heads(data, tmp_path):
    with pytest.raises(SystemExit) as error:
        files.train("mue_caption", data, tmp_path, "--criterion", "deecap_loss")
    assert "--exit-layers all and --exit-head imitation" in str(error.value)
    assert error.value.code == 2

"""Exit heads through the commands: train from a plain checkpoint, generate, miss weights."""

import json
import shutil

import pytest
import torch
from helpers import task_files as files

import ofa_exit
from ofa_exit.cli import sweep
from ofa_exit.plugin.errors import UsageError

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


# ------------------------------------------------------------------ missing weights

REJECTED = (
    r"^{path} lacks the weights of the exit heads after decoder layers {layers} "
    r"\(--exit-head {kind}\)\. Train them: .*--finetune-from-model {path}; or [^\n]*$"
)


def heads_of(kind: str, layers: str = "all") -> list[str]:
    return ["--model-overrides", str({"exit_head": kind, "exit_layers": layers})]


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        *[("linear", ["--exit-policy", "entropy"]), ("meta", ["--exit-policy", "meta"])],
        *[("imitation", ["--exit-policy", "entropy"]), ("transformer", [])],
    ],
)
def test_generation_rejects_untrained_heads(data, plain, kind, policy):
    wanted = REJECTED.format(path=plain, layers="1,2,3,4,5", kind=kind)
    with pytest.raises(UsageError, match=wanted):
        files.generate("mue_caption", data, plain, *policy, *heads_of(kind))


def test_a_sweep_and_a_validation_reject_untrained_heads(data, plain):
    wanted = REJECTED.format(path=plain, layers="2,4", kind="linear")
    given = ["--gen-subset", "test", "--scoring", "coco_caption", *heads_of("linear", "2,4")]
    with pytest.raises(UsageError, match=wanted):
        sweep.sweep([{}], files.generate_arguments("mue_caption", data, plain, *given))
    with pytest.raises(UsageError, match=wanted):
        files.validate(data, plain, "--task", "mue_caption", *heads_of("linear", "2,4"))


def test_one_untrained_checkpoint_of_an_ensemble_is_named(data, plain, tmp_path):
    trained = files.train(
        *("mue_caption", data, tmp_path, *METHODS["frozen"], "--exit-layers", "all"),
        *("--finetune-from-model", str(plain)),
        updates=1,
    )
    wanted = REJECTED.format(path=plain, layers="1,2,3,4,5", kind="imitation")
    with pytest.raises(UsageError, match=wanted):
        files.generate("mue_caption", data, f"{trained}:{plain}", *heads_of("imitation"))


@pytest.mark.parametrize(("kind", "part"), [("adapter", "5."), ("imitation", "gate.")])
def test_heads_that_are_missing_in_part_are_rejected(data, plain, tmp_path, kind, part):
    """A part of all heads, or one head. Python reports the same."""
    options = ["--criterion", "exit_heads_loss", "--exit-head", kind, "--exit-layers", "all"]
    start = ["--finetune-from-model", str(plain)]
    state = torch.load(files.train("mue_caption", data, tmp_path, *options, *start, updates=1))
    for name in [n for n in state["model"] if n.startswith(f"decoder.exits.{part}")]:
        del state["model"][name]
    torch.save(state, tmp_path / "cut.pt")
    shutil.copy(data / "dict.txt", tmp_path)
    layers = "1,2,3,4,5" if part == "gate." else "5"
    wanted = REJECTED.format(path=tmp_path / "cut.pt", layers=layers, kind=kind)
    with pytest.raises(UsageError, match=wanted):
        files.generate("mue_caption", data, tmp_path / "cut.pt")
    with pytest.raises(ofa_exit.PredictionError, match=wanted):
        ofa_exit.load(tmp_path / "cut.pt", device="cpu")


def test_shared_heads_have_no_weights_to_miss(data, plain):
    """CALM's own baseline: the final norm and projection after every layer of plain OFA."""
    exits = ["--exit-policy", "confidence", "--exit-alpha", "0.1"]
    for overrides in ([], heads_of("shared", "2,4")):
        assert len(files.generate("mue_caption", data, plain, *exits, *overrides)["H"]) == 11

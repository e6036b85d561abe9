"""Training exits by fairseq's commands."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from helpers.task_files import caption_folder, entailment_folder, generate, train

from ofa_exit.cli.export import export
from ofa_exit.plugin.errors import UsageError

EXITS = ["--criterion", "blipee_adversarial", "--exit-layers", "2,4"]
EXITS += ["--feature-classifier-dim", "16", "--disable-validation"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("blipee")
    data = caption_folder(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return data, train("mue_caption", data, folder / "plain", updates=2)


def load(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)


def start(plain: tuple[Path, Path], out: Path, *more: str, updates: int) -> dict:
    data, init = plain
    arguments = ["mue_caption", data, out, *EXITS, "--finetune-from-model", str(init), *more]
    return load(train(*arguments, updates=updates, resumable=True))


def moments(checkpoint: dict) -> list[dict]:
    return list(checkpoint["last_optimizer_state"]["state"].values())


def test_training_through_the_command(plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    init = load(plain[1])["model"]
    first = start(plain, tmp_path / "one", updates=1)
    assert "missing exit heads initialised" in caplog.text
    assert "the backbone is frozen" in caplog.text and "untrained" not in caplog.text
    second = start(plain, tmp_path / "two", updates=2)

    for checkpoint in (first, second):
        backbone = {n: v for n, v in checkpoint["model"].items() if n in init}
        assert backbone.keys() == init.keys()  # batch-norm statistics and counters among them
        assert all(torch.equal(init[n], v) for n, v in backbone.items())
    classifiers = [n for n in first["model"] if n.startswith("feature_classifiers.")]
    exits = [n for n in first["model"] if n.startswith("decoder.exits.")]
    assert len(classifiers) == 8 and len(classifiers) + len(exits) + len(init) == len(
        first["model"]
    )
    # Every update trains both groups.
    for names in (classifiers, exits):
        assert not all(torch.equal(first["model"][n], second["model"][n]) for n in names)
    for updates, checkpoint in ((1, first), (2, second)):
        assert len(moments(checkpoint)) == len(classifiers) + len(exits)
        assert {int(state["step"]) for state in moments(checkpoint)} == {updates}

    # Straight on, and resumed, is the same.
    straight = start(plain, tmp_path / "straight", updates=4)
    resumed = start(plain, tmp_path / "two", updates=4)
    for name, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    for one, other in zip(moments(straight), moments(resumed), strict=True):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)

    export(tmp_path / "straight" / "checkpoint_last.pt", tmp_path / "small.pt")
    assert set(load(tmp_path / "small.pt")["model"]) == {*init, *exits}


def test_groups_in_turn_through_the_command(plain, tmp_path):
    """The first update is the classifiers', the second the exit transformers'."""
    init = load(plain[1])["model"]
    turns = ["--blipee-updates", "alternate"]
    first = start(plain, tmp_path / "one", *turns, updates=1)
    second = start(plain, tmp_path / "two", *turns, updates=2)
    classifiers = [n for n in first["model"] if n.startswith("feature_classifiers.")]
    exits = [n for n in first["model"] if n.startswith("decoder.exits.")]
    for name in exits:
        layer, rest = name.removeprefix("decoder.exits.").split(".", 1)
        assert torch.equal(first["model"][name], init[f"decoder.layers.{layer}.{rest}"])
    assert not all(torch.equal(first["model"][n], second["model"][n]) for n in exits)
    assert all(torch.equal(first["model"][n], second["model"][n]) for n in classifiers)
    assert len(moments(first)) == len(classifiers)
    assert len(moments(second)) == len(classifiers) + len(exits)


def test_checkpoints_of_the_previous_release_resume_load_and_export(plain, tmp_path, caplog):
    """The size of the feature classifiers was an argument of the model."""
    first = start(plain, tmp_path / "out", updates=2)
    old = copy.deepcopy(first)
    old["cfg"]["model"].feature_classifier_dim = old["cfg"]["criterion"].pop(
        "feature_classifier_dim"
    )
    torch.save(old, tmp_path / "out" / "checkpoint_last.pt")

    caplog.set_level(logging.INFO)
    caplog.clear()  # training printed its options if another test has set up logging
    captions = generate("mue_caption", plain[0], tmp_path / "out" / "checkpoint_last.pt")["H"]
    assert len(captions) == 11 and "feature_classifier" not in caplog.text
    export(tmp_path / "out" / "checkpoint_last.pt", tmp_path / "small.pt")
    exported = load(tmp_path / "small.pt")["model"]
    assert {n.split(".")[0] for n in exported} == {"encoder", "decoder"}
    assert all(torch.equal(value, old["model"][n]) for n, value in exported.items())

    straight = start(plain, tmp_path / "straight", updates=4)["model"]
    resumed = start(plain, tmp_path / "out", updates=4)["model"]
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[n]) for n, value in straight.items())


@pytest.mark.parametrize(
    "more",
    [
        ["--memory-efficient-fp16"],
        ["--blipee-mode", "distill", "--kl-direction", "final_to_exit"],
        ["--adversarial-weight", "0", "--checkpoint-activations"],
        ["--word-weight", "0", "--update-freq", "2"],
    ],
    ids=lambda more: more[0],
)
def test_options_through_the_command(plain, tmp_path, more):
    trained = start(plain, tmp_path, *more, updates=2)["model"]
    init = load(plain[1])["model"]
    if "fp16" in more[0]:  # half in memory, float32 in the file
        init = {n: v.half().float() if v.is_floating_point() else v for n, v in init.items()}
    assert all(torch.equal(init[n], v) for n, v in trained.items() if n in init)
    names = [n for n in trained if n.startswith("decoder.exits.")]
    source = [n.removeprefix("decoder.exits.").split(".", 1) for n in names]
    assert any(
        not torch.equal(trained[n], init[f"decoder.layers.{layer}.{rest}"])
        for n, (layer, rest) in zip(names, source)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "blipee_adversarial"], "--exit-layers"),
        (["--exit-layers", "1,3"], "does not train the exits of --exit-layers"),
    ],
)
def test_exits_and_their_criterion_belong_together(plain, tmp_path, options, message):
    """A usage error, before anything is trained."""
    data, init = plain
    with pytest.raises(UsageError, match=message):
        train("mue_caption", data, tmp_path, *options, "--finetune-from-model", str(init))


def test_entailment_and_validation(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = entailment_folder(tmp_path / "data")
    exits = [word for word in EXITS if word != "--disable-validation"]
    train("mue_snli_ve", data, tmp_path / "out", *exits, updates=2)
    assert caplog.text.count("the frozen backbone is untrained") == 1
    (line,) = [r.getMessage() for r in caplog.records if "valid_word_loss" in r.getMessage()]
    for key in ("fc_loss", "gen_loss", "acc_exit_2", "fc_acc_exit_4", "spread_exit_2"):
        assert f"valid_{key}" in line

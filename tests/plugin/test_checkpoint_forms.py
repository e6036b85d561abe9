"""Forms of checkpoints met in public, through fairseq's commands and ofa-exit export."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.checkpoint_forms import FORMS, hugging_face_names

from ofa_exit.cli.main import main as ofa_exit
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.saved_arguments import is_in_parts

data = caption_task.data  # a fixture
SPLIT = ("--model-overrides", "{'split_modalities': True}")  # has no weights to be told from


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """Trained from a ResNet and from another checkpoint, which are both deleted afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        folder = tmp_path_factory.mktemp("checkpoint")
        first = files.train(TASK, data, folder / "first", "--disable-validation", updates=1)
        start = "encoder.embed_images."
        weights = torch.load(first)["model"]
        stem = {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}
        torch.save(stem, folder / "resnet.pth")
        more = ["--resnet-model-path", str(folder / "resnet.pth"), "--disable-validation"]
        more += ["--finetune-from-model", str(first), "--resnet-type", "resnet_nano"]
        trained = files.train(TASK, data, folder / "run", *more, updates=8)
        (folder / "resnet.pth").unlink()
        first.unlink()
        return trained


@pytest.fixture(scope="module")
def captions(data, checkpoint):
    """Also: neither file of the training is needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return files.generate(TASK, data, checkpoint)["H"]


def test_validation_needs_no_files_of_the_training(data, checkpoint):
    files.validate(data, checkpoint, "--task", TASK, "--batch-size", "4")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_generates_the_same_captions(data, checkpoint, captions, tmp_path, form):
    path = tmp_path / "model.pt"
    torch.save(FORMS[form](torch.load(checkpoint)["model"]), path)
    assert files.generate(TASK, data, path, *SPLIT)["H"] == captions


@pytest.mark.parametrize("option", ["--finetune-from-model", "--restore-file"])
def test_training_starts_at_every_form(data, checkpoint, tmp_path, option):
    for form in ("bare", "data parallel", "Hugging Face"):
        path = tmp_path / f"{form}.pt"
        start = torch.load(checkpoint)["model"]
        torch.save(FORMS[form](start), path)
        more = [option, str(path), "--lr", "1e-12", "--disable-validation"]
        trained = files.train(TASK, data, tmp_path / f"run {form}", *more, updates=1)
        name = "decoder.layers.0.encoder_attn.k_proj.weight"
        torch.testing.assert_close(
            torch.load(trained)["model"][name], start[name], rtol=0, atol=1e-6
        )


def test_export_converts_names_and_adds_arguments(data, checkpoint, captions, tmp_path, capsys):
    path = tmp_path / "pytorch_model.bin"
    torch.save(hugging_face_names(torch.load(checkpoint)["model"]), path)
    assert ofa_exit(["export", str(path), str(tmp_path / "ofa.pt")]) == 0
    state = torch.load(tmp_path / "ofa.pt")
    assert (
        state["args"].encoder_embed_dim == 32 and "encoder.layers.0.attn_ln.bias" in state["model"]
    )
    assert files.generate(TASK, data, tmp_path / "ofa.pt", *SPLIT)["H"] == captions


def test_export_rejects_what_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "page.pt").write_text("<html>")
    assert ofa_exit(["export", str(tmp_path / "page.pt"), str(tmp_path / "out.pt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ofa-exit export: error: ") and "is a web page" in line
    assert not (tmp_path / "out.pt").exists()


def bad_files(folder: Path, checkpoint: Path) -> dict[str, tuple[Path, str]]:
    folder.mkdir()
    paths = {name: folder / f"{name}.pt" for name in ("pointer", "empty", "torn", "nan", "bert")}
    paths["pointer"].write_text("version https://git-lfs.github.com/spec/v1\n")
    paths["empty"].touch()
    paths["torn"].write_bytes(checkpoint.read_bytes()[:-100])
    for sibling in ("missing_base.pt", "missing-best.pt", "missing_part.txt", "missing2.pt"):
        (folder / sibling).write_bytes(checkpoint.read_bytes())
    state = torch.load(checkpoint)
    state["cfg"]["bpe"] = {"_name": "bert"}
    torch.save(state, paths["bert"])
    state["cfg"]["bpe"] = None
    state["model"]["encoder.embed_images.bn1.running_var"][3] = float("nan")
    torch.save(state, paths["nan"])
    messages = {
        "pointer": "git-lfs pointer",
        "empty": "is empty",
        "torn": "is damaged",
        "nan": "bn1.running_var holds NaN",
        "bert": "--bpe bert, Chinese OFA",
        "missing": "no such checkpoint",
        "folder": "is a folder",
    }
    paths.update(missing=folder / "missing.pt", folder=folder)
    return {name: (paths[name], message) for name, message in messages.items()}


def assert_rejected(message: str, path: Path, command, *arguments, option: str = "") -> None:
    with pytest.raises(UsageError) as caught:
        command(*arguments)
    text = str(caught.value)
    assert message in text and str(path) in text and option in text and "\n" not in text


def test_generation_and_validation_reject_unusable_files_on_one_line(data, checkpoint, tmp_path):
    more = ("--task", TASK, "--batch-size", "4")
    for name, (path, message) in bad_files(tmp_path / "bad", checkpoint).items():
        option = "" if name in ("nan", "bert") else "--path"
        assert_rejected(message, path, files.generate, TASK, data, path, option=option)
        if name not in ("missing", "bert"):
            assert_rejected(message, path, files.validate, data, path, *more)
    assert_rejected("not found", Path("/no/w.pt"), files.validate, data, "/no/w.pt", *more)


@pytest.mark.parametrize("option", ["--finetune-from-model", "--restore-file"])
def test_training_never_starts_from_scratch_in_silence(data, checkpoint, tmp_path, option):
    for name, (path, message) in bad_files(tmp_path / "bad", checkpoint).items():
        arguments = (TASK, data, tmp_path / f"run {name}", option, str(path))
        named = "" if name in ("nan", "bert") else option
        assert_rejected(message, path, files.train, *arguments, option=named)


@pytest.mark.parametrize("part", ["a-shard0.pt", "a_part0.pt", "a-model_part-1.pt"])
def test_only_fairseqs_names_are_parts(tmp_path, part):
    path = str(tmp_path / "a.pt")
    (tmp_path / "a_base.pt").touch()
    assert not is_in_parts(path)
    (tmp_path / part).touch()
    assert is_in_parts(path)
    (tmp_path / "a.pt").touch()
    assert not is_in_parts(path)


def test_an_embedding_that_is_no_tensor_is_named(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    state["model"]["encoder.embed_tokens.weight"] = "words"
    path = tmp_path / "model.pt"
    torch.save(state, path)
    message = "encoder.embed_tokens.weight is a str, not a tensor"
    assert_rejected(message, path, files.generate, TASK, data, path)


def test_misfits_and_broken_entries_name_the_file(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    name = "decoder.code_layernorm_embedding.bias"
    changes = (
        ({"optimizer_history": []}, "fairseq cannot read what is beside the weights"),
        ({"extra_state": None}, "fairseq cannot read what is beside the weights"),
        ({"model": {**state["model"], name: torch.ones(1, 32)}}, f"not fit this model. {name}"),
    )
    for change, message in changes:
        torch.save({**state, **change}, tmp_path / "model.pt")
        path = tmp_path / "model.pt"
        assert_rejected(message, path, files.generate, TASK, data, path)


def test_a_start_that_loads_nothing_is_rejected(data, checkpoint, tmp_path):
    state = torch.load(checkpoint)
    for model, message in (
        ({"bert.pooler.weight": torch.ones(2)}, "the checkpoint does not fit this model"),
        ({}, "holds no weights"),
    ):
        torch.save({**state, "model": model}, tmp_path / "model.pt")
        with pytest.raises(UsageError, match=message):
            more = ["--restore-file", str(tmp_path / "model.pt")]
            files.train(TASK, data, tmp_path / "run", *more)


def test_two_starts_and_an_unusable_last_checkpoint_are_rejected(data, checkpoint, tmp_path):
    both = ["--restore-file", str(checkpoint), "--finetune-from-model", str(checkpoint)]
    with pytest.raises(UsageError, match="give one of them"):
        files.train(TASK, data, tmp_path / "both", *both)
    (tmp_path / "run" / "checkpoint_last.pt").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"checkpoint_last.pt is a folder"):
        files.train(TASK, data, tmp_path / "run", "--finetune-from-model", str(checkpoint))


def test_a_misfit_is_named_in_training_too(data, checkpoint, tmp_path):
    more = ["--finetune-from-model", str(checkpoint), "--encoder-ffn-embed-dim", "48"]
    with pytest.raises(UsageError, match=r"does not fit this model\. .*fc1.*\(64"):
        files.train(TASK, data, tmp_path, *more)


def test_a_folder_of_chinese_words_is_rejected(data, tmp_path):
    files.write_dictionary(tmp_path / "zh")
    (tmp_path / "zh" / "vocab.txt").write_text("[PAD]\n[unused1]\n[UNK]\n[CLS]\n的\n", "utf-8")
    with pytest.raises(UsageError, match=r"zh/vocab.txt: BERT's words \(Chinese OFA"):
        files.setup(TASK, data, bpe_dir=str(tmp_path / "zh"))


def test_old_arguments_with_only_a_name_load(data, checkpoint, captions, tmp_path):
    """``args`` and ``cfg`` both: fairseq reads the first."""
    state = torch.load(checkpoint)
    args = Namespace(**{**vars(state["cfg"]["model"]), "task": "caption", "arch": "ofa_nano"})
    torch.save({**state, "args": args}, tmp_path / "model.pt")
    assert files.generate(TASK, data, tmp_path / "model.pt")["H"] == captions


SHARDED = ["--ddp-backend", "fully_sharded", "--use-sharded-state"]


@pytest.mark.parametrize("option", ["--restore-file", "--finetune-from-model", "--save-dir"])
@pytest.mark.parametrize(
    ("part", "more"),
    [
        ("checkpoint_last-shard0.pt", []),
        ("checkpoint_last_part0.pt", []),
        ("checkpoint_last-shard1.pt", SHARDED),  # of another process
        ("checkpoint_last.pt", SHARDED),  # the whole
    ],
)
def test_a_checkpoint_that_is_not_read_is_rejected(data, checkpoint, tmp_path, option, part, more):
    """fairseq opens a file of another name, finds none, and trains from scratch."""
    if option == "--finetune-from-model" and part == "checkpoint_last.pt":
        pytest.skip("fairseq reads the whole")
    run = tmp_path / "run"
    run.mkdir()
    (run / part).write_bytes(checkpoint.read_bytes())
    start = [] if option == "--save-dir" else [option, str(run / "checkpoint_last.pt")]
    if option == "--restore-file":  # this name is fairseq's default
        (run / part).rename(run / part.replace("checkpoint_last", "ck"))
        start, part = [option, str(run / "ck.pt")], part.replace("checkpoint_last", "ck")
    save_dir = run if option == "--save-dir" else tmp_path / "other"
    with pytest.raises(UsageError, match=rf"{option}:? .* is missing, and .*{part} beside it"):
        files.train(TASK, data, save_dir, *start, *more)


def test_a_shard_is_read_where_fairseq_reads_it(data, checkpoint, tmp_path):
    (tmp_path / "checkpoint_last-shard0.pt").write_bytes(b"torn")
    with pytest.raises(UsageError, match=r"checkpoint_last-shard0.pt is not a check"):
        files.train(TASK, data, tmp_path, *SHARDED)


@pytest.mark.parametrize("option", ["--finetune-from-model", "--restore-file"])
def test_a_remote_start_that_is_missing_is_rejected(data, tmp_path, option, monkeypatch):
    monkeypatch.setattr("fairseq.checkpoint_utils.PathManager.exists", lambda path: "://" in path)
    with pytest.raises(UsageError, match=r"store://no/w\.pt: no such checkpoint"):
        files.train(TASK, data, tmp_path, option, "store://no/w.pt")

"""Options that a checkpoint's training fixes: taken from it, and compared with it."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.checkpoint_forms import official
from helpers.paths import ROOT

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.trained_options import kind_of_task
from ofa_exit.spelling import flag

data, checkpoint = caption_task.data, caption_task.checkpoint  # fixtures
ENTAILMENT = "mue_snli_ve"


@pytest.fixture
def plain(monkeypatch):
    """The commands of ``files`` without the options that checkpoints bring."""
    monkeypatch.setattr(files, "SMALL", [])


def test_generation_takes_them_from_the_checkpoint(data, checkpoint, plain):
    found = files.generate(TASK, data, checkpoint)
    given = ["--patch-image-size", "32", "--code-dict-size", "0", "--num-bins", "0"]
    assert files.generate(TASK, data, checkpoint, *given)["H"] == found["H"]


def test_the_shipped_checkpoint_needs_none_of_them(plain):
    emoji = ROOT / "examples" / "emoji"
    shipped = ROOT / "examples" / "checkpoints" / "ofa_nano_caption.pt"
    command = (TASK, emoji / "caption_valid.tsv", shipped, "--gen-subset", "valid", "--beam", "1")
    more = ["--bpe-dir", str(emoji), "--batch-size", "64"]
    found = files.generate(*command, *more)
    given = ["--patch-image-size", "64", "--code-dict-size", "0", "--num-bins", "0"]
    assert files.generate(*command, *more, *given)["H"] == found["H"]
    with pytest.raises(UsageError, match=r"--code-dict-size is 8192, but .*trained with 0. Leave"):
        files.generate(*command, *more, "--code-dict-size", "8192")


def test_training_takes_them_from_its_start_and_stores_them(data, checkpoint, plain, tmp_path):
    more = ["--disable-validation", "--finetune-from-model", str(checkpoint)]
    trained = files.train(TASK, data, tmp_path / "run", *more, updates=1)
    task = torch.load(trained)["cfg"]["task"]
    assert (task["patch_image_size"], task["code_dict_size"], task["num_bins"]) == (32, 0, 0)
    assert (task["max_src_length"], task["imagenet_default_mean_and_std"]) == (80, False)
    # The same command resumes, without its start. Other images than in the start are allowed.
    files.train(TASK, data, tmp_path / "run", *more[:2], "/gone.pt", updates=2)
    larger = files.train(
        TASK, data, tmp_path / "larger", *more, "--patch-image-size", "48", updates=1
    )
    assert torch.load(larger)["cfg"]["task"]["patch_image_size"] == 48


def test_without_a_checkpoint_defaults_are_those_of_ofa(data):
    unset = dict(patch_image_size=None, code_dict_size=None, num_bins=None)
    cfg = files.setup(TASK, data, **unset).cfg
    assert (cfg.patch_image_size, cfg.code_dict_size, cfg.num_bins) == (480, 8192, 1000)
    cfg = files.setup(ENTAILMENT, data).cfg
    assert (cfg.prompt_type, cfg.add_caption, cfg.max_src_length) == ("none", False, 80)


def test_validation_takes_them_and_rejects_others(data, checkpoint):
    command = (data, checkpoint, "--task", TASK, "--batch-size", "4")
    files.validate(*command)
    for option, given in (("--patch-image-size", "48"), ("--num-bins", "1000")):
        with pytest.raises(UsageError, match=f"{option} is {given}, but .*trained with"):
            files.validate(*command, option, given)
    overrides = "{'patch_image_size': 48}"
    files.validate(*command, "--patch-image-size", "48", "--model-overrides", overrides)


@pytest.mark.parametrize("form", ["args", "cfg"])
@pytest.mark.parametrize(
    ("official_task", "task", "option", "trained", "given"),
    [
        ("caption", TASK, "patch_image_size", 32, "48"),
        ("refcoco", TASK, "patch_image_size", 512, "32"),
        ("image_gen", TASK, "imagenet_default_mean_and_std", False, None),
        ("caption", TASK, "max_src_length", 80, "20"),
        ("caption", TASK, "num_bins", 0, "1000"),
        ("snli_ve", ENTAILMENT, "prompt_type", "prev_output", "none"),
        ("snli_ve", ENTAILMENT, "add_caption", False, None),
        ("vqa_gen", "mue_vqa", "prompt_type", "prev_output", "none"),
        ("vqa_gen", "mue_vqa", "patch_image_size", 480, "32"),
    ],
)
def test_official_tasks_are_compared(
    data, checkpoint, plain, tmp_path, form, official_task, task, option, trained, given
):
    path = official(checkpoint, tmp_path / "m.pt", form, official_task, **{option: trained})
    name = "--" + option.replace("_", "-")
    wrong = [name] if given is None else [name, given]
    value = "True" if given is None else given
    with pytest.raises(
        UsageError, match=f"{name} is {value}, but .*m.pt was trained with {trained}"
    ):
        files.generate(task, data, path, *wrong)


@pytest.mark.parametrize("form", ["args", "cfg"])
def test_official_values_are_taken(data, checkpoint, plain, tmp_path, form):
    path = official(checkpoint, tmp_path / "m.pt", form, "caption")
    found = files.generate(TASK, data, path)["H"]
    assert found == files.generate(TASK, data, checkpoint)["H"]


def test_prompts_of_another_task_do_not_bind(data, checkpoint, plain, tmp_path):
    path = official(checkpoint, tmp_path / "m.pt", "cfg", "vqa_gen", max_src_length=7)
    assert len(files.generate(TASK, data, path, "--max-src-length", "20")["H"]) == 11
    assert [kind_of_task(name) for name in ("vqa_gen", "mue_vqa", "refcoco", None)] == [
        *("vqa", "vqa", None, None)
    ]


def test_every_checkpoint_of_an_ensemble_is_compared(data, checkpoint, plain, tmp_path):
    other = official(checkpoint, tmp_path / "m.pt", "cfg", "caption", patch_image_size=64)
    with pytest.raises(UsageError, match=r"size is 32, but .*m.pt was trained with 64"):
        files.generate(TASK, data, f"{checkpoint}:{other}")


def test_a_value_of_the_wrong_kind_is_rejected(data, checkpoint, plain, tmp_path):
    path = official(checkpoint, tmp_path / "m.pt", "cfg", "caption", patch_image_size="large")
    with pytest.raises(UsageError, match="patch_image_size is 'large', not int"):
        files.generate(TASK, data, path)


def test_another_vocabulary_is_rejected_where_nothing_is_trained(data, checkpoint, plain, tmp_path):
    words = len(files.WORDS) + 5
    folder = files.write_dictionary(tmp_path / "more", (*files.WORDS, "purple"))
    with pytest.raises(UsageError, match=rf"has {words} words, and .*more/dict.txt .*{words + 1}"):
        files.generate(TASK, data, checkpoint, "--bpe-dir", str(folder))
    with pytest.raises(UsageError, match=f"{words} words and the vocabulary {words + 1}"):
        more = ["--batch-size", "4", "--bpe-dir", str(folder)]
        files.validate(data, checkpoint, "--task", TASK, *more)
    torch.save(torch.load(checkpoint)["model"], tmp_path / "bare.pt")
    with pytest.raises(UsageError, match="Give --code-dict-size 0 --num-bins 0"):
        files.generate(TASK, data, tmp_path / "bare.pt", "--patch-image-size", "32")


@pytest.mark.parametrize("task", ["mue_caption", "mue_snli_ve", "mue_vqa"])
def test_the_page_lists_every_option_that_a_training_fixes(task):
    page = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    table = page.partition("## Options that a checkpoint's training fixes")[2].partition("##")[0]
    scopes = {
        one: line.split("|")[2].strip()
        for line in table.splitlines()
        if line.startswith("| `")
        for one in re.findall(r"`(--[\w-]+)`", line)
    }
    for option in dataclasses.fields(TASK_DATACLASS_REGISTRY[task]):
        if "fallback" in option.metadata:
            scope = "any task" if option.metadata["any_task"] else "the same task"
            assert scopes[flag(option.name)] == scope

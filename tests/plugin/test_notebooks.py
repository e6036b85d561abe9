"""OFA's notebooks: a checkpoint gives models, configuration and task, without any data."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, utils
from helpers import task_files as files
from helpers.checkpoint_forms import official
from helpers.paths import ROOT

from ofa_exit.plugin.errors import UsageError

OFFICIAL = {"mue_caption": "caption", "mue_snli_ve": "snli_ve", "mue_vqa": "vqa_gen"}
SEARCH = {"beam": 5, "max_len_b": 4, "no_repeat_ngram_size": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of dict.txt, and a checkpoint."""
    folder = tmp_path_factory.mktemp("notebook")
    data = files.caption_folder(folder / "data")
    return data, files.train("mue_caption", data, folder / "run", "--disable-validation")


def load(path, **overrides):
    """The notebooks' own lines."""
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        utils.split_paths(str(path)), arg_overrides={"eval_cider": False, "seed": 7, **overrides}
    )
    for model in models:
        model.eval()
        model.prepare_for_inference_(cfg)
    return models, task, task.build_generator(models, cfg.generation)


def encode_text(task, text, append_bos=False, append_eos=False):
    s = task.tgt_dict.encode_line(
        line=task.bpe.encode(text), add_if_not_exist=False, append_eos=False
    ).long()
    if append_bos:
        s = torch.cat([torch.LongTensor([task.src_dict.bos()]), s])
    if append_eos:
        s = torch.cat([s, torch.LongTensor([task.src_dict.eos()])])
    return s


def construct_sample(task):
    source = encode_text(task, " what does the image describe?", True, True).unsqueeze(0)
    side = task.cfg.patch_image_size
    return {
        "id": np.array(["42"]),
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.LongTensor([s.ne(task.src_dict.pad()).sum() for s in source]),
            "patch_images": torch.zeros(1, 3, side, side),
            "patch_masks": torch.tensor([True]),
        },
    }


@pytest.mark.parametrize("form", ["args", "cfg"])
@pytest.mark.parametrize("ours", OFFICIAL)
def test_an_official_checkpoint_gives_its_task(trained, tmp_path, form, ours):
    data, checkpoint = trained
    path = official(
        *(checkpoint, tmp_path / "official.pt", form, OFFICIAL[ours]),
        bpe_dir="../../utils/BPE",  # of the machine that trained it
        data="../../dataset/train.tsv",
        max_src_length=77,
    )
    search = {} if ours == "mue_snli_ve" else SEARCH  # its answers are scored
    models, task, generator = load(path, bpe_dir=str(data), **search)
    assert task.cfg._name == ours and task.cfg.max_src_length == 77
    ((best, *_),) = task.inference_step(generator, models, construct_sample(task))
    assert isinstance(task.text(best["tokens"]), str) and best["score"].isfinite()


def test_the_example_of_the_docs(trained, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
    *_, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    official(trained[1], tmp_path / "caption_base_best.pt", "args", "caption")
    (tmp_path / "BPE").symlink_to(trained[0])
    monkeypatch.chdir(tmp_path)
    _, task, _ = load("caption_base_best.pt", bpe_dir="BPE")
    exec(code, {"sample": construct_sample(task)})
    assert capsys.readouterr().out.endswith("\n")


def test_the_missing_candidates_of_an_official_checkpoint_are_named(trained, tmp_path, caplog):
    data, checkpoint = trained
    path = official(
        *(checkpoint, tmp_path / "official.pt", "args", "vqa_gen"),
        ans2label_file="../../dataset/trainval_ans2label.pkl",
    )
    _, task, _ = load(path, bpe_dir=str(data))
    assert task.trie is None and "trainval_ans2label.pkl, which is missing" in caplog.text
    (tmp_path / "answers.txt").write_text("red\nblue\n")
    answers = str(tmp_path / "answers.txt")
    _, task, _ = load(path, bpe_dir=str(data), ans2label_file=answers)
    assert len(task.trie.answers) == 2


def test_our_checkpoints_need_no_data():
    shipped = ROOT / "examples" / "checkpoints" / "ofa_nano_caption.pt"
    options = {"bpe_dir": str(ROOT / "examples" / "emoji"), **SEARCH}
    models, task, generator = load(shipped, **options)
    ((best, *_),) = task.inference_step(generator, models, construct_sample(task))
    assert task.text(best["tokens"])
    exits = {"exit_policy": "static", "exit_depths": "2,2,4"}
    models, task, generator = load(shipped, **options, **exits)
    task.inference_step(generator, models, construct_sample(task))
    assert models[0].last_trace.image_layers.tolist() == [2]


def test_another_official_task_is_rejected_with_what_to_do(trained, tmp_path):
    data, checkpoint = trained
    path = official(checkpoint, tmp_path / "official.pt", "args", "refcoco")
    with pytest.raises(UsageError, match=r"'refcoco' is unsupported\. Set up one of mue_caption"):
        load(path, bpe_dir=str(data))
    task = files.setup("mue_caption", data)
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task)
    assert len(models) == 1

"""Batches made by hand, as OFA's notebooks make them: ``id`` and ``net_input`` alone."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers import task_files as files
from helpers import vqa_samples as vqa

from ofa_exit.plugin.tasks.samples import complete_sample

NOTEBOOK = ("src_tokens", "src_lengths", "patch_images", "patch_masks")


def dataset_batch(task, count=3):
    task.load_dataset("test")
    rows = task.dataset("test")
    return rows.collater([rows[number] for number in range(count)])


def by_hand(sample, keys=NOTEBOOK):
    net_input = {name: sample["net_input"][name] for name in keys}
    return {"id": np.array([str(n) for n in range(len(sample["id"]))]), "net_input": net_input}


def hypotheses(task, models, sample, **options):
    generator = task.build_generator(models, Namespace(**options))
    hyps = task.inference_step(generator, models, sample)
    return [[(hyp["tokens"].tolist(), round(float(hyp["score"]), 4)) for hyp in h] for h in hyps]


CASES = {
    "captions": ("mue_caption", {}, {"beam": 3, "max_len_b": 5}),
    "captions after a prompt": (
        *("mue_caption", {"caption_prompt": "a square"}, {"beam": 3, "max_len_b": 5}),
    ),
    "entailment": ("mue_snli_ve", {}, {}),
    "entailment, source as prompt": ("mue_snli_ve", {"prompt_type": "src"}, {}),
    "entailment, prompt": ("mue_snli_ve", {"prompt_type": "prev_output", "add_caption": True}, {}),
    "open questions": ("mue_vqa", {}, {"beam": 3, "max_len_b": 3}),
    "open questions, prompt": (
        *("mue_vqa", {"prompt_type": "prev_output"}),
        {"beam": 3, "max_len_b": 3, "unnormalized": True},
    ),
    "answer set": ("mue_vqa", {"answers": "answers.txt", "prompt_type": "prev_output"}, {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data and a checkpoint of each task."""
    root, found = tmp_path_factory.mktemp("hand"), {}
    for task in ("mue_caption", "mue_snli_ve", "mue_vqa"):
        if task == "mue_vqa":
            data = files.write_dictionary(root / task, vqa.WORDS)
            for name, kind in (("train", "train"), ("valid", "valid"), ("test", "test")):
                files.write_tsv(data / f"{name}.tsv", [vqa.row(n, kind) for n in range(6)])
            (data / "answers.txt").write_text("red\ndark red\nno\n2\n")
        else:
            make = {"mue_caption": files.caption_folder, "mue_snli_ve": files.entailment_folder}
            data = make[task](root / task)
        found[task] = data, files.train(task, data, root / f"{task}_run", "--disable-validation")
    return found


@pytest.mark.parametrize("exits", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_data_set(folders, case, exits):
    name, options, searched = CASES[case]
    data, checkpoint = folders[name]
    options = {k: str(data / v) if k == "answers" else v for k, v in options.items()}
    if exits:
        options.update(exit_policy="similarity", exit_decoder_threshold=0.9)
    task = files.setup(name, data, **options)
    models = files.load(task, checkpoint)
    sample = dataset_batch(task)
    expected = hypotheses(task, models, sample, **searched)
    assert "target" in sample
    notebook = by_hand(sample)
    given = set(notebook), set(notebook["net_input"])
    assert hypotheses(task, models, notebook, **searched) == expected
    assert (set(notebook), set(notebook["net_input"])) == given  # no target, nothing added
    images = by_hand(sample, ("src_tokens", "patch_images"))["net_input"]  # the least
    assert hypotheses(task, models, {"net_input": images}, **searched) == expected


def test_notebooks_encode_with_the_task(folders):
    """The functions that OFA's notebooks define call these names of a task."""
    task = files.setup("mue_caption", folders["mue_caption"][0])
    text = task.bpe.encode(" what does the image describe?")
    tokens = task.tgt_dict.encode_line(text, add_if_not_exist=False, append_eos=False).long()
    ends = torch.LongTensor([task.src_dict.bos()]), torch.LongTensor([task.src_dict.eos()])
    source = torch.cat([ends[0], tokens, ends[1]])
    sample = dataset_batch(task, 1)
    assert source.tolist() == sample["net_input"]["src_tokens"][0].tolist()


def test_names_of_rows():
    sources = torch.tensor([[0, 5, 2, 1], [0, 5, 6, 2]])
    net_input = {"src_tokens": sources}

    def names(**sample):
        return complete_sample({"net_input": net_input, **sample}, lambda row: row, 1)["uniq_ids"]

    assert names() == ["0", "1"]
    assert names(id=torch.tensor([7, 9])) == ["7", "9"]
    assert names(id=np.array(["42", "x"])) == names(id=["42", "x"]) == ["42", "x"]
    assert names(id=torch.tensor([7, 9]), uniq_ids=["a", "b"]) == ["a", "b"]
    complete = complete_sample({"net_input": net_input}, lambda row: row[:-1], 1)
    assert complete["net_input"]["src_lengths"].tolist() == [3, 4]
    assert complete["net_input"]["prev_output_tokens"].tolist() == [[0, 5, 1], [0, 5, 6]]
    assert complete["prompt_lengths"].tolist() == [2, 3]
    assert list(net_input) == ["src_tokens"]

"""Exits trained on a model's own captions (CapFilt) by the scripts of COCO and NoCaps."""

from __future__ import annotations

import pytest
import torch
from fairseq import options
from helpers import prepare_samples as samples
from helpers import script_runs
from helpers import task_files as files
from helpers.script_runs import SMALL, failing, run

from ofa_exit.data.tsv import TsvFile

calls = script_runs.calls
MODE = {"MODE": "capfilt", "RANKER": "clip-folder"}
# A ranker that likes long captions.
RANKER = """\
import torch

class Length:
    def embed_images(self, images):
        return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    def embed_texts(self, texts):
        angles = torch.tensor([3.0 / (1 + len(text)) for text in texts])
        return torch.stack([angles.cos(), angles.sin()], dim=1)

def load_ranker(checkpoint, device):
    return Length()
"""


@pytest.fixture
def folder(tmp_path):
    """Held-out rows that exist already."""
    (tmp_path / "rows").mkdir()
    for name in ("train", "valid"):
        (tmp_path / "rows" / f"{name}.tsv").write_text("x\n" * 130)
    return tmp_path


@pytest.mark.parametrize("name", ["coco", "nocaps"])
def test_captions_are_sampled_filtered_and_trained_on(name, calls, folder, monkeypatch):
    commands, read = calls
    out = folder / "out"
    prompt = ("--caption-prompt", "a photo of")
    given = (f"{name}/train_blipee.sh", folder, "init.pt", out, "--seed", 3, *prompt, "--", *prompt)
    environment = {"BIN": commands, "BPE_DIR": "/bpe", "ROWS": str(folder / "rows"), **MODE}
    more = {"SAMPLES": "6", "KEEP": "3"}
    # The stand-ins write no captions to train on.
    assert "caption_synthetic.tsv" in failing(*given, **environment, **more)
    images, sampled, filtered = read()
    made = out / "capfilt"
    assert images == ["capfilt", "images", f"{folder}/rows/train.tsv", f"{made}/images.tsv"]
    monkeypatch.setattr("sys.argv", ["fairseq", *sampled])
    args = options.parse_args_and_arch(options.get_generation_parser(), sampled)
    assert (args.data, args.path, args.task) == (f"{made}/images.tsv", "init.pt", "mue_caption")
    assert (args.sampling, args.sampling_topp, args.beam, args.nbest) == (True, 0.9, 6, 6)
    assert (args.caption_prompt, args.results_path) == ("a photo of", str(made))
    assert filtered[:4] == [
        "capfilt",
        "filter",
        f"{made}/images.tsv",
        f"{made}/generate-images.txt",
    ]
    assert filtered[filtered.index("--ranker") + 1] == "clip-folder"
    assert filtered[filtered.index("--keep") + 1] == "3"

    (made / "caption_synthetic.tsv").write_text("x\n" * 40)
    run(*given, **environment, **more)
    (arguments,) = read()  # no backbone to train, and no step twice
    monkeypatch.setattr("sys.argv", ["fairseq", *arguments])
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    assert args.data == f"{made}/caption_synthetic.tsv,{folder}/rows/valid.tsv"
    assert (args.criterion, args.blipee_mode) == ("blipee_adversarial", "supervised")
    assert (args.finetune_from_model, args.save_dir) == ("init.pt", f"{out}/exits")
    assert (args.caption_prompt, args.seed) == ("a photo of", 3)
    assert str(made) in failing(*given, **environment, **{**more, "SAMPLES": "7"})


def test_captions_are_made_in_one_process(calls, folder):
    commands, _ = calls
    environment = {"BIN": commands, "ROWS": str(folder / "rows"), "WORLD_SIZE": "2", "RANK": "0"}
    given = ("coco/train_blipee.sh", folder, "init.pt", folder / "out")
    assert "in one process" in failing(*given, **environment, **MODE)
    given = ("gqa/train_blipee.sh", *given[1:])
    assert "MODE=capfilt makes captions" in failing(*given, **environment, **MODE)


@pytest.mark.slow
def test_exits_of_a_miniature_are_trained_without_labels(tmp_path, monkeypatch):
    """From COCO's official files and a ranker of one's own to exits."""
    monkeypatch.setattr("sys.argv", ["test"])
    root, data, out = tmp_path / "release", tmp_path / "data", tmp_path / "out"
    root.mkdir()
    samples.coco(root)
    run("coco/prepare.sh", root, data)
    files.write_dictionary(data)
    init = files.train(
        *("mue_caption", files.caption_folder(tmp_path / "c"), tmp_path / "init"), updates=8
    )
    (tmp_path / "ranker.py").write_text(RANKER)
    environment = {"ARCH": "ofa_nano", "EPOCHS": "1", "MICRO": "2", "BATCH": "2", "SAMPLES": "4"}
    environment |= {"MODE": "capfilt", "RANKER": str(tmp_path / "ranker.py"), "ROWS": str(data)}
    task = [*SMALL, "--caption-prompt", "a square of"]
    given = ("coco/train_blipee.sh", data, init, out, *task, *files.NANO[2:], "--", *task)
    printed = run(*given, **environment)
    assert "the backbone is frozen" in printed and not (out / "backbone").exists()
    trained = torch.load(out / "exits" / "checkpoint_last.pt", weights_only=True)
    assert trained["cfg"]["task"]["caption_prompt"] == "a square of"
    columns = ("uniq_id", "image", "caption")
    synthetic = TsvFile(out / "capfilt" / "caption_synthetic.tsv", "0,4,2", columns)
    images = TsvFile(out / "capfilt" / "images.tsv", "0,4,2", columns)
    assert len(images) < len(synthetic) <= 2 * len(images)
    assert not synthetic.row(0)["caption"].startswith("a square of a square of")

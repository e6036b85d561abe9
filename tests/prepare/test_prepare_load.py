"""The tasks read what the scripts prepare."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import prepare_samples as samples
from helpers.paths import ROOT
from helpers.prepare_samples import prepare
from helpers.task_files import setup, write_dictionary

from ofa_exit.cli.prepare import RELEASES

FILES = {
    "coco": {"train", "train_stage2", "valid", "test"},
    "nocaps": {"valid", "valid_in_domain", "valid_near_domain", "valid_out_domain"},
    "snli_ve": {"train", "valid", "test"},
    "vqa": {"train", "valid", "test-dev", "test"},
    "okvqa": {"train", "valid"},
    "gqa": {"train", "valid", "testdev", "test"},
    "vizwiz": {"train", "valid", "test"},
    "visdial": {"train", "valid", "test"},
    "rsicd": {"train", "train_stage2", "valid", "test"},
    "vqa_rad": {"train", "valid", "test", "test_closed", "test_open"},
}


def load(task, split):
    task.load_dataset(split)
    dataset = task.dataset(split)
    return dataset.collater([dataset[at] for at in range(len(dataset))])


def test_captioning_task_reads_coco(tmp_path):
    samples.coco(tmp_path / "root")
    out = tmp_path / "out"
    assert prepare("coco", tmp_path / "root", out) == 0
    words = ("what", "does", "the", "image", "describe", "?", "a", "dog", "two", "cat", "bird")
    write_dictionary(out, words)
    task = setup("mue_caption", out)
    train, valid = load(task, "train"), load(task, "valid")
    assert train["uniq_ids"] == ["700", "701", "702"]
    assert train["net_input"]["patch_masks"].all()
    assert train["net_input"]["patch_images"].std() > 0
    targets = [task.text(row[row.ne(1)]) for row in train["target"]]
    assert targets[0] == "a dog"
    assert valid["references"] == [["a bird", "the bird sings."]]


def test_captioning_task_reads_nocaps(tmp_path):
    samples.nocaps(tmp_path / "root")
    out = tmp_path / "out"
    assert prepare("nocaps", tmp_path / "root", out) == 0
    write_dictionary(out)
    batch = load(setup("mue_caption", out), "valid_near_domain")
    assert batch["uniq_ids"] == ["1", "3"] and [len(of) for of in batch["references"]] == [10, 10]


def test_entailment_task_reads_snli_ve(tmp_path):
    samples.snli_ve(tmp_path / "root")
    out = tmp_path / "out"
    assert prepare("snli_ve", tmp_path / "root", out) == 0
    write_dictionary(out)
    for split in ("train", "valid", "test"):
        batch = load(setup("mue_snli_ve", out, add_caption=True), split)
        assert batch["references"] == [["yes"], ["maybe"], ["no"]]
        assert batch["net_input"]["patch_masks"].all()


def test_every_release_has_a_script():
    scripts = {path.parent.name for path in ROOT.glob("run_scripts/*/prepare.sh")}
    assert scripts == {*RELEASES, "emoji", "data_set"}  # emoji are built, not released
    assert set(FILES) == set(RELEASES)


@pytest.mark.parametrize("name", FILES)
def test_a_script_prepares_all_splits(name, tmp_path):
    getattr(samples, name)(tmp_path / "root")
    more = ["--answers", "1", "--min-occurrences", "1"] if name == "vqa" else []
    command = [str(ROOT / "run_scripts" / name / "prepare.sh"), "root", "out", *more]
    done = subprocess.run(
        command,
        env={**os.environ, "BIN": os.path.dirname(sys.executable), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    assert {path.stem for path in (tmp_path / "out").glob("*.tsv")} == FILES[name]
    assert (tmp_path / "out" / "answers.txt").exists() == (name in ("vqa", "vqa_rad"))
    for path in (tmp_path / "out").glob("*.tsv"):
        assert samples.manifest(path)["output"]["bytes"] == path.stat().st_size


@pytest.mark.parametrize("name", FILES)
def test_help_says_what_to_download(name, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare(name, "--help")
    message = capsys.readouterr().out
    assert ended.value.code == 0 and "ROOT/" in message and "http" in message
    for split in RELEASES[name].SPLITS:
        assert f"{split}.tsv" in message or split in ("trainval",)

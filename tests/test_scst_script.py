"""The CIDEr stage by its script, in two processes, on a few rows of the built-in data."""

import pytest
from test_run_scripts import few_rows, script

from ofa_exit.evaluation.cider_d import DocumentFrequencies


@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp"])
def test_two_processes(tmp_path, backend):
    small = {"DATA": str(few_rows(tmp_path / "data")), "BATCH": "4"}
    script("pretrain.sh", "caption", tmp_path / "plain", 1, **small)
    start, out = tmp_path / "plain" / "checkpoint_last.pt", tmp_path / "scst"
    more = {"PROCESSES": "2", "DDP": backend, "BASELINE": "greedy"}
    printed = script("scst.sh", "mue", start, out, 2, **small, **more)
    assert "reward_greedy" in printed and "caption_length" in printed
    assert "| cider " in printed
    assert (out / "checkpoint_best.pt").is_file()
    assert DocumentFrequencies.load(out / "document_frequencies.npz").images == 8
    captions = [line.split("\t")[2] for line in (out / "caption_stage2_train.tsv").open()]
    assert len(captions) == 8 and any("&&" in of_image for of_image in captions)

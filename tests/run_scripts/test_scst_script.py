"""The CIDEr stage by its script, in two processes, on a few rows of the built-in data."""

import pytest
from helpers.emoji_scripts import EMOJI, PLAIN, few_rows, script

from ofa_exit.evaluation.metrics.cider_d import DocumentFrequencies


@pytest.mark.parametrize(
    "backend", ["legacy_ddp", pytest.param("pytorch_ddp", marks=pytest.mark.slow)]
)
def test_two_processes(tmp_path, backend):
    small = {"DATA": str(few_rows(tmp_path / "data", 12)), "BATCH": "4"}
    out = tmp_path / "scst"
    more = {"PROCESSES": "2", "DDP": backend, "BASELINE": "greedy"}
    printed = script("scst.sh", "mue", PLAIN, out, 2, **small, **more)
    assert "reward_greedy" in printed and "caption_length" in printed
    assert "| cider " in printed
    assert (out / "checkpoint_best.pt").is_file()
    assert DocumentFrequencies.load(out / "document_frequencies.npz").images == 12
    with (out / "caption_stage2_train.tsv").open() as rows:
        captions = [line.split("\t")[1:3] for line in rows]
    with (EMOJI / "references_train.tsv").open() as rows:
        expected = [line.rstrip("\n").split("\t") for _, line in zip(range(12), rows)]
    assert captions == expected and any("&&" in of_image for _, of_image in captions)

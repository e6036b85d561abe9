"""BLIPEE's script through the real commands: train exits, then generate with them."""

import json

import pytest
import torch
from helpers.emoji_scripts import PLAIN, few_rows, script

import ofa_exit.plugin  # noqa: F401  (allows the classes that checkpoints hold)


@pytest.mark.parametrize(
    "backend", ["pytorch_ddp", pytest.param("legacy_ddp", marks=pytest.mark.slow)]
)
def test_train_in_two_processes_and_generate(backend, tmp_path):
    data = {"DATA": str(few_rows(tmp_path / "data")), "BATCH": "4", "EXITS": "2,3"}
    printed = script(
        *("blipee.sh", "caption", PLAIN, tmp_path / "exits", 4, "--log-interval", 1),
        **{**data, "PROCESSES": "2", "DDP": backend},
    )
    assert "the backbone is frozen" in printed and "fc_acc_exit_2" in printed
    checkpoint = tmp_path / "exits" / "checkpoint_last.pt"
    init = torch.load(PLAIN, weights_only=True)["model"]
    trained = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(value, trained[name]) for name, value in init.items())
    if backend == "legacy_ddp":
        return
    exits = ["--exit-policy", "confidence", "--exit-alpha", "0.3", "--coco-tokenizer", "plain"]
    printed = script(
        "generate.sh", "caption", checkpoint, "test_artist", tmp_path / "captions", *exits, **data
    )
    assert "parameter_speedup" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("Exit summary: ")]
    summary = json.loads(line.removeprefix("Exit summary: "))
    assert summary["parameter_speedup"] > 1 and summary["decoder_layers"] < 6


def test_train_in_two_processes_without_captions(tmp_path):
    """By distillation, on the model's own captions."""
    data = few_rows(tmp_path / "data")
    rows = [line.split("\t") for line in (data / "caption_train.tsv").read_text().splitlines()]
    unlabelled = ["\t".join([*row[:2], "", *row[3:]]) for row in rows]
    (data / "caption_train.tsv").write_text("".join(f"{line}\n" for line in unlabelled))
    printed = script(
        *("blipee.sh", "caption", PLAIN, tmp_path / "exits", 2, "--log-interval", 1),
        *("--max-tgt-length", 6),
        DATA=str(data),
        BATCH="4",
        PROCESSES="2",
        DDP="pytorch_ddp",
        MODE="distill",
    )
    assert "word_loss" in printed and (tmp_path / "exits" / "checkpoint_last.pt").exists()

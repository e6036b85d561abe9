"""The words of dict.txt, compared with those of a checkpoint's training."""

import logging

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK

import ofa_exit
from ofa_exit.cli.main import main
from ofa_exit.plugin.errors import PredictionError, UsageError

data, checkpoint = caption_task.data, caption_task.checkpoint  # fixtures
WORDS = list(files.WORDS)
SWAPPED = [*WORDS[:3], WORDS[4], WORDS[3], *WORDS[5:]]


def folder(tmp_path, words, start=""):
    made = files.write_dictionary(tmp_path / "bpe", words)
    (made / "dict.txt").write_text(start + (made / "dict.txt").read_text(), encoding="utf-8")
    return str(made)


@pytest.mark.parametrize(
    "words",
    [SWAPPED, WORDS[::-1], sorted(WORDS), [*WORDS[:-1], "purple"]],
    ids=["swapped", "reversed", "sorted", "another word"],
)
def test_other_words_of_the_same_number_are_rejected(data, checkpoint, tmp_path, words):
    bpe = folder(tmp_path, words)
    number = next(n for n, pair in enumerate(zip(WORDS, words)) if pair[0] != pair[1])
    message = (
        rf"{bpe}/dict.txt has other words than the dict.txt that .*checkpoint_last.pt was trained "
        rf"with, {data}/dict.txt: line {number + 1} is '.*', but '.*{WORDS[number][-1]}' in the tr"
    )
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        files.generate(TASK, data, checkpoint, "--bpe-dir", bpe)


def test_every_command_compares(data, checkpoint, tmp_path):
    bpe, more = folder(tmp_path, SWAPPED), ["--disable-validation"]
    match = "has other words than the dict.txt that"
    with pytest.raises(UsageError, match=match):
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "4", "--bpe-dir", bpe)
    with pytest.raises(UsageError, match=match):
        start = ["--finetune-from-model", str(checkpoint), "--bpe-dir", bpe]
        files.train(TASK, data, tmp_path / "run", *more, *start, updates=1)
    with pytest.raises(PredictionError, match=match):
        ofa_exit.load(checkpoint, bpe_dir=bpe, device="cpu")


def test_the_dictionary_of_the_training_may_be_gone(data, checkpoint, tmp_path):
    exported = tmp_path / "m.pt"
    assert main(["export", str(checkpoint), str(exported)]) == 0
    with pytest.raises(UsageError, match=r"that .*m.pt was trained with\. Give the folder of"):
        files.generate(TASK, data, exported, "--bpe-dir", folder(tmp_path, SWAPPED))


def test_a_longer_dictionary_of_the_same_beginning_is_accepted(data, checkpoint, tmp_path, caplog):
    bpe = folder(tmp_path, [*WORDS, "purple", "orange"])
    more = ["--disable-validation", "--finetune-from-model", str(checkpoint), "--bpe-dir", bpe]
    with caplog.at_level(logging.INFO):
        trained = files.train(TASK, data, tmp_path / "run", *more, updates=1)
    assert f"begins with the {len(WORDS)} words that {checkpoint}" in caplog.text
    assert torch.load(trained)["task_state"]["dictionary"]["words"] == len(WORDS) + 2
    with pytest.raises(UsageError, match="words"):
        files.generate(TASK, data, trained)


def test_a_byte_order_mark_is_rejected(data, checkpoint, tmp_path):
    bpe = folder(tmp_path, WORDS, "\ufeff")
    with pytest.raises(UsageError, match=r"dict.txt begins with a byte order mark. Save it as"):
        files.generate(TASK, data, checkpoint, "--bpe-dir", bpe)


def test_a_checkpoint_without_a_fingerprint(data, checkpoint, tmp_path, caplog):
    state = torch.load(checkpoint)
    del state["task_state"]
    torch.save(state, tmp_path / "m.pt")
    for _ in range(2):
        assert files.generate(TASK, data, tmp_path / "m.pt")["H"]
    warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    (warning,) = [one for one in warnings if "m.pt does not say which words it was" in one]
    assert f"check that {data / 'dict.txt'} is the dict.txt of its training" in warning
    state["task_state"] = {"dictionary": [1]}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"m.pt: the fingerprint of its dictionary is damaged"):
        files.generate(TASK, data, tmp_path / "m.pt")

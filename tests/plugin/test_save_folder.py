"""Checkpoints are whole or missing, training resumes from a whole one, and one at a time."""

import os
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from helpers import task_files as files
from helpers.small_disk import disk_of

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.save_folder import newest_whole_checkpoint, whole_file

SAVE = checkpoint_utils.torch_persistent_save
NOISE = {"model": {"weight": torch.arange(100_000.0)}}  # 400 kB
MORE = ["--save-interval-updates", "2", "--disable-validation"]


def test_fairseq_leaves_parts_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    whole, last = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
    SAVE(NOISE, str(whole))
    last.write_bytes(b"old")
    with disk_of(200_000):
        with pytest.raises(OSError):
            PathManager.copy.__wrapped__(str(whole), str(last), overwrite=True)
        with pytest.raises((OSError, RuntimeError)):
            SAVE.__wrapped__(NOISE, str(tmp_path / "checkpoint2.pt"))
    assert 3 < last.stat().st_size < whole.stat().st_size
    assert (tmp_path / "checkpoint2.pt.tmp").exists()


def test_fairseq_tries_again_behind_the_first_attempt(tmp_path, monkeypatch):
    original, failures = torch.save, ["No space left on device"]

    def save(obj, file):
        original(obj, file)
        if failures:
            file.seek(file.tell() // 2)
            file.truncate()
            raise OSError(failures.pop())

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torch, "save", save)
    path = str(tmp_path / "checkpoint1.pt")
    SAVE.__wrapped__(NOISE, path)
    with pytest.raises(RuntimeError):
        torch.load(path)


def test_a_full_disk_leaves_the_old_checkpoint_and_one_line(tmp_path):
    whole, last = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
    SAVE(NOISE, str(whole))
    last.write_bytes(b"old")
    assert torch.load(whole)["model"]["weight"].equal(NOISE["model"]["weight"])
    with disk_of(200_000):
        for write in (
            lambda: PathManager.copy(str(whole), str(last), overwrite=True),
            lambda: SAVE(NOISE, str(last)),
        ):
            with pytest.raises(UsageError, match=r"last\.pt cannot be written: .*\. Make room"):
                write()
            assert last.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["checkpoint1.pt", "checkpoint_last.pt"]
    assert PathManager.copy(str(whole), str(last), overwrite=True)
    assert last.read_bytes() == whole.read_bytes()


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(str(tmp_path / "a.pt")) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.caption_folder(tmp_path_factory.mktemp("data"))


def train(data, folder, updates, *more):
    return files.train("mue_caption", data, folder, *MORE, *more, updates=updates, resumable=True)


def weights_of(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("damage", ["cut off", "empty", "changed"])
def test_training_resumes_from_the_newest_whole_checkpoint(data, tmp_path, caplog, damage):
    last = train(data, tmp_path, 5)
    assert {"checkpoint_1_2.pt", "checkpoint_2_4.pt"} <= set(os.listdir(tmp_path))
    uninterrupted, content = weights_of(last), bytearray(last.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 1
    size = {"cut off": len(content) // 2, "empty": 0, "changed": len(content)}[damage]
    last.write_bytes(content[:size])
    os.utime(tmp_path / "checkpoint_1_2.pt")  # the newest by its time, not by its updates
    (tmp_path / "checkpoint_2_5.pt").write_bytes(content[: size // 2])  # damaged as well
    (tmp_path / "checkpoint3.pt.tmp").write_bytes(b"of a killed training")
    with caplog.at_level("INFO"):
        train(data, tmp_path, 5)
    notice = next(text for text in caplog.messages if "newest whole" in text)
    assert "checkpoint_last.pt is" in notice and "Resuming from" in notice
    assert "checkpoint_2_4.pt" in notice and "\n" not in notice
    assert any("(epoch 2 @ 4 updates)" in text for text in caplog.messages)
    assert not (tmp_path / "checkpoint3.pt.tmp").exists()
    resumed = weights_of(last)
    assert all(resumed[name].equal(value) for name, value in uninterrupted.items())


def test_no_whole_checkpoint_ends_on_one_line(data, tmp_path):
    for name in ("checkpoint1.pt", "checkpoint_last.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError) as caught:
        train(data, tmp_path, 1)
    message = str(caught.value)
    assert "checkpoint_last.pt is damaged: its end is missing" in message and "\n" not in message
    assert "remove it to start over: no other checkpoint" in message


def test_shards_and_diverged_checkpoints_are_no_substitute(tmp_path):
    def state(number, updates):
        return {
            "model": {"decoder.weight": torch.tensor([number])},
            "args": Namespace(arch="ofa_nano", task="mue_caption"),
            "optimizer_history": [{"num_updates": updates}],
        }

    for name, number, updates in (
        ("checkpoint_1_1.pt", 1.0, 1),
        ("checkpoint.best_cider_98.40.pt", 1.0, 2),
        ("checkpoint_best.pt", torch.nan, 3),
        ("checkpoint4-shard0.pt", 1.0, 4),
        ("average.pt", 1.0, 5),
    ):
        torch.save(state(number, updates), tmp_path / name)
    last = str(tmp_path / "checkpoint_last.pt")
    found = newest_whole_checkpoint(last, ValueError("damaged"))
    assert os.path.basename(found) == "checkpoint.best_cider_98.40.pt"
    sharded = str(tmp_path / "checkpoint_last-shard0.pt")
    assert newest_whole_checkpoint(sharded, ValueError("x")).endswith("checkpoint4-shard0.pt")


HOLD = """
import sys
from ofa_exit.plugin.save_folder import hold_save_folder
hold_save_folder(sys.argv[1], "")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_training_into_one_folder_is_rejected(data, tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=r"another training writes .*or give another folder"):
            train(data, tmp_path, 1)
        train(data, tmp_path, 1, "--no-save")  # writes nothing there
        other.kill()
    assert train(data, tmp_path, 1).exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--save-dir .*file/x: Not a directory\. Give a folder"):
        checkpoint_utils.verify_checkpoint_directory(str(tmp_path / "file" / "x"))

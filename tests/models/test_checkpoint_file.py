"""Files in place of a checkpoint: each is read, or rejected on one line with a remedy."""

from __future__ import annotations

import os
import random
import re
import time
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_forms import FORMS
from helpers.small_models import nano

import ofa_exit.plugin.compat  # noqa: F401  torch may read argparse.Namespace
from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.models.checkpoint_sizes import sizes_of
from ofa_exit.models.stem import load_resnet_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return nano().state_dict()


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def failure(path: Path, weights: bool = True) -> str:
    """The message of the error, which has one line, names the file and says what to do."""
    with pytest.raises((ValueError, OSError)) as caught:
        read_checkpoint(path, weights)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert re.search(r"\. (Copy|Give|Run|Download|Unpack|Save|Use|Set|Convert)[^.]* ", message)
    return message


BYTES = {
    "empty": (b"", "is empty"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "is a web page"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(60), "compressed by gzip"),
    "text": (b"no checkpoint at all", "is not a checkpoint of torch"),
    "safetensors": ((20).to_bytes(8, "little") + b'{"a":{}}' + bytes(20), "a safetensors file"),
    "zip without its end": (b"PK\x03\x04" + bytes(200), "its end is missing"),
}


@pytest.mark.parametrize("weights_too", [True, False])
@pytest.mark.parametrize("name", BYTES)
def test_other_files_are_named_for_what_they_are(tmp_path, name, weights_too):
    content, message = BYTES[name]
    (tmp_path / "model.pt").write_bytes(content)
    assert message in failure(tmp_path / "model.pt", weights_too)


def test_missing_files_folders_pipes_and_plain_archives(tmp_path):
    assert "no such checkpoint" in failure(tmp_path / "none.pt")
    (tmp_path / "checkpoint_best.pt").touch()
    assert "is a folder" in failure(tmp_path) and "checkpoint_best.pt" in failure(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in failure(tmp_path / "pipe")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.pt", "x")
    assert "is a zip archive" in failure(tmp_path / "a.zip")


def test_truncated_files_are_rejected(tmp_path, weights):
    for legacy in (False, True):
        path = saved(tmp_path / "m.pt", weights, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for length in (10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert re.search("damaged", failure(path))


def test_flipped_bytes_never_pass_unnoticed(tmp_path, weights):
    """A byte of the pickle or of any tensor; torch itself compares no checksum."""
    path = saved(tmp_path / "m.pt", {"model": weights})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = []
        for entry in archive.infolist():
            start = whole.index(entry.filename.encode(), entry.header_offset)
            start = entry.header_offset + 30 + len(entry.filename)
            start += int.from_bytes(whole[entry.header_offset + 28 :][:2], "little")
            places.append((entry.filename, start, entry.file_size))
    shuffled = random.Random(0)
    data = [place for place in places if "/data/" in place[0] and place[2]]
    (pickle,) = (place for place in places if place[0].endswith("/data.pkl"))
    for name, start, size in [pickle, *shuffled.sample(data, 20)]:
        damaged = bytearray(whole)
        damaged[start + shuffled.randrange(size)] ^= 1 << shuffled.randrange(8)
        path.write_bytes(damaged)
        assert f"the checksum of {name} is wrong" in failure(path)
    damaged = bytearray(whole)
    damaged[pickle[1] + 40] ^= 4
    path.write_bytes(damaged)
    assert "is wrong" in failure(path, weights=False)


def test_fuzzed_files_end_in_one_line_or_load_the_same(tmp_path, weights):
    path = saved(tmp_path / "m.pt", {"model": weights})
    whole, shuffled = path.read_bytes(), random.Random(1)
    loaded = 0
    for _ in range(60):
        damaged = bytearray(whole)
        ends = (shuffled.randrange(4000), len(whole) - 1 - shuffled.randrange(20000))
        damaged[shuffled.choice(ends)] ^= 1 << shuffled.randrange(8)
        path.write_bytes(damaged)
        try:
            model = read_checkpoint(path)["model"]
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            continue
        loaded += 1
        assert all(torch.equal(model[name], value) for name, value in weights.items())
    assert loaded < 60


def test_files_without_checksums_load(tmp_path, weights):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "m.pt", weights)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path)["model"].keys() == weights.keys()


def test_a_class_that_could_run_code_is_named(tmp_path, weights):
    path = saved(tmp_path / "m.pt", {"model": weights, "args": time.struct_time(range(9))})
    assert "time.struct_time, which could run code" in failure(path)


BAD = {
    "nan": ("decoder.layers.0.fc1.weight", lambda v: v.fill_(float("nan")), "NaN or infinity"),
    "one infinity": ("encoder.layers.1.fc2.bias", lambda v: v.index_fill_(
        0, torch.tensor([3]), float("inf")), "NaN or infinity"),
    "variance": ("encoder.embed_images.bn1.running_var", lambda v: v.fill_(float("nan")), "NaN"),
    "negative variance": ("encoder.embed_images.bn1.running_var", lambda v: -v, "negative"),
    "whole numbers": ("decoder.layers.0.fc1.weight", lambda v: v.long(), "whole numbers"),
    "text": ("decoder.layers.0.fc1.weight", lambda v: "weights", "is a str, not a tensor"),
    "sparse": ("decoder.layers.0.fc1.weight", lambda v: v.to_sparse(), "sparse"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_weights_that_cannot_be_used_are_named(tmp_path, weights, name):
    entry, change, message = BAD[name]
    bad = {**weights, entry: change(weights[entry].clone())}
    text = failure(saved(tmp_path / "m.pt", {"model": bad, "args": None}))
    assert message in text and entry in text


def test_large_finite_weights_pass(tmp_path, weights):
    """Also where their sum overflows."""
    for value, dtype in ((3e38, torch.float32), (60000.0, torch.float16)):
        large = {name: v.to(dtype) if v.is_floating_point() else v for name, v in weights.items()}
        large["encoder.layers.0.fc1.weight"] = torch.full((64, 32), value, dtype=dtype)
        assert read_checkpoint(saved(tmp_path / "m.pt", large))


KINDS = {
    "cfg text": ({"cfg": "model: ofa_base"}, '"cfg" is a str'),
    "args dictionary": ({"args": {"arch": "ofa_base"}}, '"args" is a dict'),
    "cfg without a model": ({"cfg": {"task": {}}}, '"cfg" holds no arguments'),
    "cfg with a text": ({"cfg": {"model": "ofa"}}, '"cfg" holds no arguments'),
    "no weights": ({"model": {}}, "holds no weights"),
    "another model": ({"model": {"bert.weight": torch.ones(1)}}, "holds no OFA model: bert.weight"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_the_entries_are_checked(tmp_path, weights, name):
    changes, message = KINDS[name]
    assert message in failure(saved(tmp_path / "m.pt", {"model": weights, **changes}))


NAMES = {
    "none": (None, "holds no weights, but a NoneType"),
    "list": ([torch.ones(2)], "holds no weights, but a list"),
    "number": ({1: torch.ones(2)}, "the weights have the key 1, not a name"),
    "mixed": ({"a": torch.ones(2), None: torch.ones(2)}, "the weights have the key None"),
}


@pytest.mark.parametrize("weights_too", [True, False])
@pytest.mark.parametrize("key", ["model", "state_dict"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_without_names_are_rejected(tmp_path, name, key, weights_too):
    content, message = NAMES[name]
    path = saved(tmp_path / "m.pt", {key: content, "epoch": 3})
    assert message in failure(path, weights_too)
    path = saved(tmp_path / "m.pt", {1: torch.ones(2)})
    assert "the key 1" in failure(path, weights_too)


def test_content_without_weights_is_rejected(tmp_path):
    assert 'no "model" among epoch' in failure(saved(tmp_path / "m.pt", {"epoch": 3}))
    assert "holds a list" in failure(saved(tmp_path / "m.pt", [torch.ones(2)]))


@pytest.mark.parametrize("weights_too", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_forms_met_in_public_get_official_names_and_sizes(tmp_path, weights, form, weights_too):
    state = read_checkpoint(saved(tmp_path / "m.pt", FORMS[form](weights)), weights_too)
    missing = {name for name in weights if name.endswith("version")}
    assert weights.keys() - missing == state["model"].keys() - missing
    cfg = nano().cfg
    for name, value in vars(state["args"]).items():
        if name not in ("arch", "task"):
            assert value == getattr(cfg, name), name
    assert state["extra_state"]["train_iterator"]["epoch"] == 1
    assert state["optimizer_history"][-1]["num_updates"] == 0


def test_arguments_that_are_stored_win(tmp_path, weights):
    stored = Namespace(arch="ofa_base", encoder_layers=9)
    state = read_checkpoint(saved(tmp_path / "m.pt", {"model": weights, "args": stored}))
    assert state["args"] == stored and sizes_of(weights)["encoder_layers"] != 9


def test_stem_weights_are_checked_in_the_same_way(tmp_path, weights):
    start = "encoder.embed_images."
    stem = {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}
    load_resnet_weights(nano().encoder.embed_images, saved(tmp_path / "r.pth", stem))
    stem["bn1.running_var"] = torch.full_like(stem["bn1.running_var"], float("inf"))
    with pytest.raises(ValueError, match=r"r.pth: bn1.running_var holds NaN or infinity"):
        load_resnet_weights(nano().encoder.embed_images, saved(tmp_path / "r.pth", stem))
    (tmp_path / "r.pth").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is a web page"):
        load_resnet_weights(nano().encoder.embed_images, tmp_path / "r.pth")


def test_an_expanded_tensor_is_named_before_it_is_summed(tmp_path):
    torch.save({"decoder.x.weight": torch.zeros(1).expand(10**12)}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"decoder.x.weight repeats a few numbers to \(1000000"):
        read_checkpoint(tmp_path / "m.pt")

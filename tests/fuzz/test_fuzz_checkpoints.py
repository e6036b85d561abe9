"""Checkpoint files with changed bytes and entries: the same model, or an error that names the file.

Zip files, torch's format since 1.6, have checksums. The format before has none.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import caption_task, fuzzing
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.fuzzing import BYTE_EDITS, CUTS, FLIPS, VALUES, attempt, folder_for_one, fuzz
from hypothesis import given
from hypothesis import strategies as st

from ofa_exit.models.checkpoint_file import read_checkpoint
from ofa_exit.models.ofa import OFAConfig

pytestmark = pytest.mark.slow
data, checkpoint = caption_task.data, caption_task.checkpoint  # fixtures
OTHER_FILES = (
    *(b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02K\x01.", b"\x80\x04N.", b"<html>"),
    *(b"version https://git-lfs", b"\x1f\x8b", b"\x93NUMPY\x01\x00", b"ustar", b"\0" * 600),
    *(
        b"\x08\0\0\0\0\0\0\0{}      ",
        b"\x80\x02cos\nsystem\nX\x02\0\0\0lsR.",
        b"]" * 9,
        b"(" * 9_999,
    ),
)
NAN, INF = float("nan"), float("inf")
# What an entry of the weights becomes; None where a whole model remains.
TENSORS = {
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "whole numbers": lambda t: t.to(torch.int32),
    "booleans": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "bfloat16": lambda t: t.bfloat16(),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "a row less": lambda t: t[:-1] if t.dim() else t,
    "a dimension more": lambda t: t[None],
    "flat": lambda t: t.flatten(),
    "empty": lambda t: t.flatten()[:0],
    "transposed": lambda t: t.t() if t.dim() == 2 else t[None, None],
    "one number": lambda t: torch.tensor(1.0),
    "not a number": lambda t: torch.full_like(t, NAN) if t.is_floating_point() else t[None],
    "infinite": lambda t: torch.full_like(t, INF) if t.is_floating_point() else t[None],
    "sparse": lambda t: t.float().to_sparse(),
    "meta": lambda t: t.to("meta"),
    "expanded": lambda t: torch.zeros(1).expand(10**12),
    "parameter": lambda t: torch.nn.Parameter(t) if t.is_floating_point() else t,
}
KINDS = ("half", "double", "bfloat16", "parameter")  # which keep the numbers, but for rounding
JUNK = st.sampled_from([value for value in VALUES if value != "\ud800"])
PARTS = st.sampled_from(("model", "cfg", "args", "extra_state", "optimizer_history", "criterion"))


@pytest.fixture(scope="module")
def task(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return files.setup(TASK, data)


class Saved(dict):
    """Shown in failures without its megabytes."""

    def __repr__(self) -> str:
        return "saved"


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory) -> dict[str, Any]:
    """The checkpoint's content, its bytes, and those of the older format."""
    content = torch.load(checkpoint)
    older = tmp_path_factory.mktemp("older") / "older.pt"
    torch.save(content, older, _use_new_zipfile_serialization=False)
    return Saved(content=content, zip=checkpoint.read_bytes(), older=older.read_bytes())


def read(tmp_path: Path, content: bytes) -> dict[str, torch.Tensor] | None:
    """The weights by each of the two readers; None where the first rejects the file."""
    with folder_for_one(tmp_path) as folder:
        path = folder / "model.pt"
        path.write_bytes(content)
        for weights in (False, True):
            state = attempt(
                folder, str(path), lambda w=weights: read_checkpoint(path, w), ValueError
            )
        return None if state is None else state["model"]


def check_same(found: dict[str, torch.Tensor] | None, saved: dict[str, Any]) -> None:
    if found is not None:
        wanted = saved["content"]["model"]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@fuzz(120)
@given(edits=st.one_of(FLIPS, CUTS, BYTE_EDITS))
def test_damaged_bytes_of_a_zip(tmp_path, saved, edits):
    check_same(read(tmp_path, fuzzing.damaged(saved["zip"], edits)), saved)


@fuzz(80)
@given(edits=st.one_of(FLIPS, CUTS, BYTE_EDITS))
def test_damaged_bytes_of_the_older_format(tmp_path, saved, edits):
    found = read(tmp_path, fuzzing.damaged(saved["older"], edits))
    assert found is None or all(isinstance(one, torch.Tensor) for one in found.values())


@fuzz(60)
@given(start=st.sampled_from(OTHER_FILES), rest=st.binary(max_size=90))
def test_other_files(tmp_path, saved, start, rest):
    check_same(read(tmp_path, start + rest), saved)


def load(tmp_path: Path, task: Any, content: Any) -> Any:
    """The model of a checkpoint, as a generation loads it."""
    with folder_for_one(tmp_path) as folder:
        path = folder / "model.pt"
        torch.save(content, path)

        def loaded() -> Any:
            files.setup(TASK, task.cfg.data, path=str(path), model_overrides="{}")
            return files.load(task, path)[0]

        return attempt(folder, str(path), loaded)


@fuzz(40)
@given(number=st.integers(0, 10**4), kind=st.sampled_from(sorted(TENSORS)))
def test_changed_weights(tmp_path, saved, task, number, kind):
    weights = dict(saved["content"]["model"])
    name = sorted(weights)[number % len(weights)]
    weights[name] = TENSORS[kind](weights[name])
    model = load(tmp_path, task, {**saved["content"], "model": weights})
    if kind in KINDS:
        assert model is not None
    if model is not None:
        wanted = saved["content"]["model"]
        for key, value in model.state_dict().items():
            if key == name or key in wanted:
                torch.testing.assert_close(value, wanted[key], rtol=0.02, atol=0.02)


@fuzz(40)
@given(number=st.integers(0, 10**4), value=JUNK, kind=st.sampled_from(("replace", "drop", "add")))
def test_changed_entries(tmp_path, saved, task, number, value, kind):
    weights = dict(saved["content"]["model"])
    name = sorted(weights)[number % len(weights)]
    if kind == "add":
        weights[value if isinstance(value, str | int | float) else name] = value
    elif kind == "replace":
        weights[name] = value
    else:
        del weights[name]
    load(tmp_path, task, {**saved["content"], "model": weights})


@fuzz(30)
@given(part=PARTS, value=JUNK)
def test_changed_parts(tmp_path, saved, task, part, value):
    load(tmp_path, task, {**saved["content"], part: value})


@fuzz(40)
@given(part=st.sampled_from(("model", "task", "bpe", "criterion", "generation")),
       number=st.integers(0, 10**4), value=JUNK, as_args=st.booleans())  # fmt: skip
def test_changed_arguments(tmp_path, saved, task, part, number, value, as_args):
    """One value of the configuration, or of the arguments that older checkpoints have."""
    cfg = dict(saved["content"]["cfg"])
    options = dict(vars(cfg[part]) if isinstance(cfg[part], Namespace) else cfg[part] or {})
    name = sorted(options)[number % len(options)] if options else "_name"
    if as_args and part in ("model", "task"):
        known = {**vars(cfg["model"]), "task": TASK, "arch": "ofa_nano", name: value}
        load(tmp_path, task, {**saved["content"], "args": Namespace(**known), "cfg": None})
    else:
        cfg[part] = {**options, name: value}
        load(tmp_path, task, {**saved["content"], "cfg": cfg})


WRONG = (None, True, 0, -1, 2.5, 10**400, NAN, INF, "x", "1", [], {}, [1])


@pytest.mark.parametrize("name", [one.name for one in fields(OFAConfig)])
def test_each_argument_of_the_model(tmp_path, saved, task, name):
    """Every argument with every wrong value."""
    cfg = saved["content"]["cfg"]
    for value in WRONG:
        arguments = Namespace(**{**vars(cfg["model"]), name: value})
        load(tmp_path, task, {**saved["content"], "cfg": {**cfg, "model": arguments}})

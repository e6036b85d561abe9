"""Grids of sweeps and files of ``--exit-config`` with changed values and bytes."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from helpers import fuzzing
from helpers.fuzzing import BYTE_EDITS, DEEP, JSON_EDITS, VALUES, attempt, folder_for_one, fuzz
from helpers.small_models import nano
from hypothesis import given
from hypothesis import strategies as st

from ofa_exit.cli.grid import exit_settings, known_options, read_grid
from ofa_exit.plugin.exit_config import (
    _COUNTS,
    _SHARES,
    PARTS,
    ExitConfig,
    read_exit_config,
)
from ofa_exit.plugin.options import build_exit_policy, reject_misfit_arguments
from ofa_exit.policies.registry import POLICIES

pytestmark = pytest.mark.slow
MODEL = nano(exit_layers="2,4", exit_head="linear").cfg
GRID = [
    {},
    {"exit_image_threshold": 0.95, "exit_text_threshold": "0.9", "exit_decoder_threshold": 0.9},
    {"run": "fixed", "exit_policy": "static", "exit_depths": "2,3,1", "exit_kv": "recompute"},
    {"exit_policy": "patience", "exit_patience": 2, "exit_options": '{"layers": "2"}'},
    {"exit_policy": "entropy", "exit_entropy_threshold": 0.3},
    {"exit_image_tokens": 0.5},
]
OPTIONS = st.dictionaries(
    st.sampled_from(["run", *known_options()]),
    st.one_of(st.sampled_from(VALUES), st.floats(), st.integers(-9, 9), st.text(max_size=5)),
    min_size=1,
    max_size=3,
)
CONFIG = ExitConfig(
    exits={"exit_policy": "similarity", "exit_decoder_threshold": 0.9},
    certificate={
        **dict(keep=0.9, confidence=0.9, bound=0.1, p_value=0.01, mean_loss=0.02),
        **dict(rows=90, path_rows=10, metric="accuracy", search={}),
    },
    checkpoint={"file": "model.pt", "sha256": "0" * 64},
    task={"kind": "caption", "answers": None},
    data={"file": "rows.tsv", "bytes": 9, "sha256_head": "1" * 64},
)


def task_options() -> Any:
    config = TASK_DATACLASS_REGISTRY["mue_caption"]()
    config.exit_policy = "none"
    return config


def check_grid(tmp_path: Path, content: bytes) -> None:
    """Read a grid, make its policies, and fit them to a model: what precedes the weights."""
    with folder_for_one(tmp_path) as folder:
        path = folder / "grid.json"
        path.write_bytes(content)

        def read():
            grid = read_grid(path)
            settings = exit_settings(grid, task_options(), "caption", str(path), "sweep")
            for setting in settings:
                setting.check_arguments(MODEL)
            return settings

        settings = attempt(folder, str(path), read)
        for setting, given in zip(settings or (), json.loads(content) if settings else ()):
            assert setting.given == {name: v for name, v in given.items() if name != "run"}
            assert isinstance(setting.run, str) and setting.kv in ("propagate", "recompute", "copy")


def test_the_grid_and_the_file_are_good(tmp_path):
    check_grid(tmp_path, json.dumps(GRID[:3]).encode())
    CONFIG.write(tmp_path / "exits.json")
    assert read_exit_config(str(tmp_path / "exits.json")) == CONFIG


@fuzz(120)
@given(edits=JSON_EDITS)
def test_changed_grids(tmp_path, edits):
    check_grid(tmp_path, json.dumps(fuzzing.changed(GRID, edits)).encode())


@fuzz(150)
@given(
    setting=OPTIONS, policy=st.one_of(st.none(), st.sampled_from(["none", *POLICIES])),
    is_written=st.booleans(),
)  # fmt: skip
def test_any_options_of_a_grid(tmp_path, setting, policy, is_written):
    named = {} if policy is None else {"exit_policy": policy}
    text = json.dumps([{**setting, **named}], ensure_ascii=not is_written)
    check_grid(tmp_path, text.encode(errors="surrogatepass"))


@fuzz(60)
@given(edits=BYTE_EDITS)
def test_damaged_grids(tmp_path, edits):
    check_grid(tmp_path, fuzzing.damaged(json.dumps(GRID).encode(), edits))


@pytest.mark.parametrize(
    "text", ["", DEEP, '{"a":' * 99_999, "[[]]", "NaN", "9" * 9_999, "[1e999]"]
)
def test_other_json(tmp_path, text):
    check_grid(tmp_path, text.encode())
    check_config(tmp_path, text.encode())


def check_config(tmp_path: Path, content: bytes, exits: Any = CONFIG.exits) -> ExitConfig | None:
    """Read a file as a generation does: it gives the exits, or one line."""
    with folder_for_one(tmp_path) as folder:
        path = folder / "exits.json"
        path.write_bytes(content)
        options = task_options()
        options.exit_config = str(path)

        def build():
            policy = build_exit_policy(options, "caption")
            reject_misfit_arguments(options, policy, MODEL)
            return read_exit_config(str(path))

        config = attempt(folder, "", build)
        if config is not None:
            assert config.exits == exits
        return config


def written() -> dict[str, Any]:
    parts = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    return {"format": 1, **copy.deepcopy(parts), "digest": CONFIG.digest}


@fuzz(100)
@given(edits=JSON_EDITS)
def test_an_edited_config_is_rejected(tmp_path, edits):
    """Its digest is of all parts; a key beside them changes nothing."""
    content = fuzzing.changed(written(), edits)
    config = check_config(tmp_path, json.dumps(content).encode())
    if config is not None:
        assert {name: content[name] for name in written()} == written()


@fuzz(60)
@given(edits=BYTE_EDITS)
def test_a_damaged_config_is_rejected(tmp_path, edits):
    content = fuzzing.damaged(json.dumps(written()).encode(), edits)
    if check_config(tmp_path, content) is not None:
        assert json.loads(content).keys() >= written().keys()


@pytest.mark.parametrize("name", [*_SHARES, *_COUNTS])
def test_every_value_in_every_number_of_a_certificate(tmp_path, name):
    """Random edits rarely meet a certain value in a certain place."""
    for value in VALUES:
        certificate = {**CONFIG.certificate, name: value}
        config = dataclasses.replace(CONFIG, certificate=certificate)
        parts = {part: getattr(config, part) for part in PARTS}
        text = json.dumps({"format": 1, **parts, "digest": config.digest})
        check_config(tmp_path, text.encode())


@fuzz(100)
@given(edits=JSON_EDITS)
def test_a_config_with_the_digest_of_its_parts(tmp_path, edits):
    """As another version or a script would write it."""
    parts = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    content = fuzzing.changed(parts, edits)
    if not isinstance(content, dict) or not parts.keys() <= content.keys():
        return
    config = ExitConfig(**{name: content[name] for name in parts})
    text = json.dumps({"format": 1, **content, "digest": config.digest})
    check_config(tmp_path, text.encode(), content["exits"])

"""Grids of settings that the scripts sweep."""

import json
from argparse import Namespace

import pytest
from helpers.paths import ROOT

from ofa_exit.cli.grid import check_setting
from ofa_exit.policies.patience import PatienceExit
from ofa_exit.policies.similarity import SimilarityExit

SCRIPTS = ROOT / "run_scripts"
GRIDS = sorted(str(path.relative_to(SCRIPTS)) for path in SCRIPTS.rglob("grids/*.json"))


def settings(name: str) -> list[dict]:
    return json.loads((SCRIPTS / name).read_text())


@pytest.mark.parametrize("name", GRIDS)
def test_every_setting_builds(name):
    for setting in settings(name):
        check_setting(setting, name)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("grids/patience.json", 6),
        ("grids/ofa_tiny_patience.json", 4),
        ("grids/ofa_medium_patience.json", 4),
        ("emoji/caption/grids/patience.json", 6),
        ("emoji/entailment/grids/patience.json", 6),
    ],
)
def test_patience_fits_the_decoder(name, layers):
    """The first setting is the most patient one that can exit, up to four."""
    model = Namespace(decoder_layers=layers, exit_layers=None)
    _, *exits = settings(name)
    for setting in exits:
        PatienceExit(setting["exit_patience"]).check(model)
    assert exits[0]["exit_patience"] == min(4, layers - 1)


@pytest.mark.parametrize("kind", ["caption", "answer"])
def test_the_released_thresholds_are_swept(kind):
    preset = SimilarityExit.presets["mue-released"][kind]
    wanted = {f"exit_{name}": value for name, value in preset.items()}
    assert wanted in settings(f"grids/{kind}.json")

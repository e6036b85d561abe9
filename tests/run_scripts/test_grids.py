"""Grids of settings that the scripts sweep."""

import json
from argparse import Namespace

import pytest
from helpers.paths import ROOT

from ofa_exit.cli.grid import check_setting
from ofa_exit.policies.patience import PatienceExit

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
    [("grids", 4), ("emoji/caption/grids", 6), ("emoji/entailment/grids", 6)],
)
def test_patience_fits_the_decoder(name, layers):
    model = Namespace(decoder_layers=layers, exit_layers=None)
    for setting in settings(f"{name}/patience.json")[1:]:
        PatienceExit(setting["exit_patience"]).check(model)

"""Which Python run_scripts/gpu.sh takes, and what it says without one."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from helpers.paths import ROOT

# Prints its own path for each command, but lacks packages where a file says so.
STUB = """#!/bin/bash
case "$*" in *find_spec*) cat "$0.lacks" 2> /dev/null && exit 1; exit 0 ;; esac
echo "$0" | tee -a "$0.calls"
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with the script and three Pythons: .venv's, the user's, and python3 of the path."""
    (tmp_path / "run_scripts").mkdir()
    shutil.copy(ROOT / "run_scripts" / "gpu.sh", tmp_path / "run_scripts")
    for place in (".venv/bin/python", "own/python", "bin/python3"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text(STUB)
        path.chmod(0o755)
    return tmp_path


def run(checkout, python=""):
    search = f"{checkout / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", checkout / "run_scripts" / "gpu.sh"],
        env={"PATH": search, "DEVICE": "cpu", "NAME": "stub", "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_given_python_goes_before_that_of_the_checkout(checkout):
    assert run(checkout, str(checkout / "own" / "python")).returncode == 0
    assert (checkout / "own" / "python.calls").exists()
    assert not (checkout / ".venv" / "bin" / "python.calls").exists()


def test_without_one_the_checkouts_own_and_then_python3(checkout):
    assert run(checkout).returncode == 0
    assert (checkout / ".venv" / "bin" / "python.calls").exists()
    (checkout / ".venv" / "bin" / "python.lacks").write_text("ve-fairseq")
    assert run(checkout).returncode == 0
    assert (checkout / "bin" / "python3.calls").exists()


def test_missing_packages_are_named_with_the_way_to_carry_them(checkout):
    own = checkout / "own" / "python"
    (own.parent / "python.lacks").write_text("ve-fairseq ijson")
    done = run(checkout, str(own))
    assert done.returncode == 2
    assert f"{own} has not all packages:\n  {own} lacks ve-fairseq ijson\n" in done.stderr
    assert "carry wheels from a machine with network: docs/gpu.md" in done.stderr
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert "pip wheel -w wheels" in page and "--no-index --find-links wheels" in page


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("given", "passed"), [(["PYTHON=/opt/python"], "/opt/python"), ([], "")])
def test_make_passes_only_a_users_own_python(given, passed):
    done = subprocess.run(
        ["make", "-n", "gpu", *given], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f'PYTHON="{passed}"' in done.stdout

"""The fault campaign itself: a few kills, a full disk and a read-only folder."""

import os
import signal
import subprocess
import sys

import pytest
from faults.processes import run
from helpers.paths import ROOT


def campaign(*arguments):
    return subprocess.run(
        [ROOT / "tests" / "faults" / "run.sh", *arguments],
        env={**os.environ, "BIN": os.path.dirname(sys.executable)},
        capture_output=True,
        text=True,
        timeout=3600,
    )


def test_help_needs_no_package():
    done = campaign("--help")
    assert done.returncode == 0 and "--kills N" in done.stdout and "source" not in done.stdout


@pytest.mark.slow
def test_a_small_campaign_finds_nothing():
    done = campaign("--kills", "9", "--steps", "training,preparation,indexing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 of 3") >= 3 and "FAILED" not in done.stdout


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({}, 0),
        ({"before_operation": 2}, -signal.SIGKILL),
        ({"before_operation": 1, "limit": 500}, -signal.SIGXFSZ),
        ({"at_seconds": 0.0}, -signal.SIGKILL),
    ],
)
def test_a_process_is_killed_where_it_was_asked_for(tmp_path, fault, status):
    def step():
        for name in ("a", "b"):
            with (tmp_path / name).open("wb") as file:
                file.write(bytes(1000))
        while "at_seconds" in fault:
            pass

    ended = run(step, tmp_path, **fault)
    assert ended.status == status
    if not fault:
        assert ended.operations == 2
    elif "limit" in fault:
        assert (tmp_path / "a").stat().st_size == 500
    elif "before_operation" in fault:
        assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_traceback_is_seen(tmp_path):
    def step():
        raise OSError("full")

    ended = run(step, tmp_path)
    assert ended.status == 1 and "OSError: full" in ended.output

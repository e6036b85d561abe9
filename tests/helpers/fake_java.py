"""A Java that is a shell script."""

import contextlib
import os
import stat

import pytest


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """A function that replaces Java by a shell script."""

    def install(script):
        command = tmp_path / "java"
        command.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{script}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path

    return install


def is_running(folder):
    """Whether the script is alive; a script that was killed before its first line left no pid."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(int((folder / "pid").read_text()), 0)
        return True
    return False

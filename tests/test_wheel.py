"""The wheel, installed outside the checkout (slow)."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import task_files as files
from helpers.paths import ROOT

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the installed wheel; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy of what git knows, so that pip builds nothing inside the checkout.
    source = folder / "source"
    source.mkdir()
    names = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in names:
        if name.startswith(("ofa_exit/", "user_dir/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation"]
    run(*pip, "wheel", ".", *offline, "--wheel-dir", folder / "wheels", cwd=source, PYTHONPATH="")
    (wheel,) = (folder / "wheels").glob("ofa_exit-*.whl")
    run(*pip, "install", wheel, "--no-deps", "--target", folder / "site", cwd=folder)
    return folder / "site"


def test_the_wheel_holds_the_package_alone(site):
    (wheel,) = (site.parent / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"ofa_exit"}
    assert {"ofa_exit/py.typed", "ofa_exit/user_dir/__init__.py"} <= set(names)


def test_the_commands_of_the_wheel(site, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    data = files.caption_folder(tmp_path / "data", test_rows=2)
    checkpoint = files.train("mue_caption", data, tmp_path / "run", updates=1)
    installed = {"PYTHONPATH": str(site)}
    printed = run(site / "bin" / "ofa-exit", "--help", cwd=tmp_path, **installed)
    assert "user-dir" in printed
    user_dir = run(site / "bin" / "ofa-exit", "user-dir", cwd=tmp_path, **installed).strip()
    assert user_dir == str(site / "ofa_exit" / "user_dir")
    generate = Path(sys.executable).parent / "fairseq-generate"
    arguments = files.generate_arguments("mue_caption", data, checkpoint)
    exits = ["--exit-policy", "static", "--exit-depths", "2,2,2"]
    given = ["--user-dir", user_dir, *arguments, *exits]
    printed = run(generate, *given, cwd=tmp_path, **installed)
    assert "Exit summary: " in printed and printed.count("\nD-") == 2
    # The code was the wheel's, not that of an editable install.
    code = "import ofa_exit; print(ofa_exit.__path__[0])"
    assert run(sys.executable, "-c", code, cwd=tmp_path, **installed).strip() == str(
        site / "ofa_exit"
    )

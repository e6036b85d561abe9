"""The command ofa-exit: its verbs, and the module names of the previous release."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from ofa_exit.cli import renamed
from ofa_exit.cli.main import VERBS, main
from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError

RENAMED = {
    "ofa_exit.sweep": "sweep",
    "ofa_exit.merge": "merge",
    "ofa_exit.export": "export",
    "ofa_exit.verify": "verify",
    "ofa_exit.layer_curve": "layers",
    "ofa_exit.document_frequencies": "document-frequencies",
    "ofa_exit.cost": "cost",
    "ofa_exit.capfilt": "capfilt",
    "ofa_exit.data.prepare": "prepare",
    "ofa_exit.data.holdout": "holdout",
    "ofa_exit.data.references": "references",
    "ofa_exit.data.emoji": "examples.emoji.builder",
    "ofa_exit.evaluation.choice": "choose",
    "ofa_exit.evaluation.plots": "plot",
    "ofa_exit.evaluation.score": "score",
    "ofa_exit.evaluation.submission": "submit",
    "ofa_exit.evaluation.table": "table",
    "ofa_exit.evaluation.layer_curve": "plot-layers",
}


SLOW = ("torch", "fairseq", "torchvision", "transformers")
# Verbs whose module needs fairseq before it parses, and why.
IMPORTS_FAIRSEQ = {"sweep": "the rest of its command line belongs to fairseq-generate's parser"}
# Calls main once per line of argv (JSON), and prints what that imported of SLOW.
CALL_MAIN = """
import contextlib, io, json, sys
from ofa_exit.cli.main import main
for argv in json.loads(sys.argv[1]):
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = main(argv)
    except SystemExit as stop:
        status = stop.code
    print(json.dumps([argv, status, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]))
"""


def test_help_fits_a_screen(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 36 and max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(VERBS)


def test_help_and_wrong_arguments_do_not_wait_for_torch():
    """In a process of its own: here torch is imported already."""
    light = [verb for verb in VERBS if verb not in IMPORTS_FAIRSEQ]
    calls = [["--help"], *([verb, option] for verb in light for option in ("--help", "--wrong"))]
    done = subprocess.run(
        [sys.executable, "-c", CALL_MAIN, json.dumps(calls), json.dumps(SLOW)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = list(map(json.loads, done.stdout.splitlines()))
    assert found == [[argv, 2 if argv[-1] == "--wrong" else 0, []] for argv in calls]


def test_every_file_of_the_folder_with_a_main_is_a_verb():
    folder = ROOT / "ofa_exit" / "cli"
    files = [*folder.glob("*.py"), *folder.glob("*/__init__.py")]
    names = {
        (path.parent if path.stem == "__init__" else path).stem.replace("_", "-")
        for path in files
        if "\ndef main(" in path.read_text() and path.stem != "main"
    }
    assert names == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: ofa-exit {verb} ")
    # The description, not wrapped again, and no markup.
    description = importlib.import_module(f"ofa_exit.cli.{verb.replace('-', '_')}").__doc__
    assert description.splitlines()[0] in printed and "``" not in printed


def test_unknown_verbs_are_rejected(capsys):
    assert main(["swep"]) == 2
    assert re.search(r"swep\b.* sweep\b", capsys.readouterr().err)
    assert main(["xyzzy"]) == 2
    assert "--help" in capsys.readouterr().err
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "sweep" in printed.err


@pytest.mark.parametrize("kind", [UsageError, lambda text: TsvError("a.tsv", message=text)])
def test_errors_of_the_user_take_one_line(kind, monkeypatch, capsys):
    from ofa_exit.cli import table

    def fail(argv):
        raise kind("what is wrong")

    monkeypatch.setattr(table, "main", fail)
    assert main(["table"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ofa-exit table: error: ") and "what is wrong" in line


@pytest.mark.parametrize(
    "arguments",
    [
        "choose no.csv",
        "document-frequencies no.tsv out.npz",
        "holdout caption no.tsv out",
        "merge out no",
        "plot no.csv --quality CIDEr --out curve",
        "plot-layers no.csv --quality CIDEr",
        "prepare coco no out",
        "references no.tsv out.tsv",
        "score vqa --results no.json --annotations no.json",
        "submit vqa no.txt no.tsv out.json",
        "table run=no",
    ],
)
def test_missing_files_are_reported_alike_by_all_verbs(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    verb, *rest = arguments.split()
    assert main([verb, *rest]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ofa-exit {verb}: error: ") and "no" in line


def test_other_errors_keep_their_traceback(monkeypatch):
    from ofa_exit.cli import table

    monkeypatch.setattr(table, "main", lambda argv: int("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        main(["table"])


def run_module(name: str, *arguments: str) -> int:
    """Run ``python -m name`` in this process; return its status."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.delitem(sys.modules, name, raising=False)
        runpy.run_module(name, run_name="__main__")
    return stopped.value.code


@pytest.mark.parametrize(("old", "new"), RENAMED.items(), ids=RENAMED)
def test_module_names_of_the_previous_release_still_work(old, new, capsys):
    command = f"ofa-exit {new}" if new in VERBS else f"python -m {new}"
    assert run_module(old, "--help") == 0
    printed = capsys.readouterr()
    assert printed.err == f"python -m {old} is now {command}\n"
    assert printed.out.startswith(f"usage: {command} ")
    assert run_module(old, "--no-such-option") == 2
    assert "error: " in capsys.readouterr().err


def test_an_example_needs_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(renamed, "PACKAGE", tmp_path / "ofa_exit")
    assert run_module("ofa_exit.data.emoji", "check", "folder") == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note.endswith("python -m examples.emoji.builder")
    assert "examples.emoji.builder" in error and "checkout" in error


def test_the_user_dir(capsys):
    """Also by the previous release's command, python -m ofa_exit alone."""
    assert main(["user-dir"]) == 0
    assert capsys.readouterr().out == f"{ROOT / 'user_dir'}\n"
    assert run_module("ofa_exit.__main__") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{ROOT / 'user_dir'}\n" and "ofa-exit user-dir" in printed.err
    assert run_module("ofa_exit.__main__", "user-dir") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{ROOT / 'user_dir'}\n", "")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"ofa-exit \d+\.\d+\.\d+\n", capsys.readouterr().out)

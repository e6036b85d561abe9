"""Every file that is read is checked first: a pipe waits for a writer, /dev/zero never ends."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

SOURCES = sorted((ROOT / "ofa_exit").rglob("*.py"))
METHODS = ("open", "read_text", "read_bytes")
LOADERS = ("np.load", "numpy.load", "torch.load")
# Reads of these files need no check of their own.
CHECKED_BEFORE = {
    "cli/merge/shards.py": "the trace's hash has been compared",
    "cli/sweep_state.py": "is_file",
    "data/files.py": "locks of this package's own temporary files",
    "evaluation/calibration/losses.py": "rows of the command's own --out, checked as an output",
    "evaluation/efficiency/report.py": "isfile",
    "evaluation/figures/paper_numbers.py": "a file of this package",
    "evaluation/metrics/spice.py": "a file of its own temporary folder",
    "models/checkpoint_file.py": "check_is_file",
    "plugin/compat_saving.py": "a checkpoint that fairseq has just written",
    "prepare/capfilt/filtering.py": "the command's own partial file",
}
# Not paths: bytes in memory, members of an open archive, flags of the operating system.
NO_PATHS = ("Image", "archive", "os")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "ofa_exit").as_posix()


def reads(mode: ast.expr | None) -> bool:
    """Return whether a mode opens for reading, as no mode does."""
    return not isinstance(mode, ast.Constant) or str(mode.value).startswith("r")


def unchecked_reads(source: str) -> Iterator[str]:
    """Yield line and text of every call that reads a path outside ``regular_file(…)``."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function, path, modes = node.func, None, node.args[1:2]
        if ast.unparse(function) in ("open", *LOADERS):
            path = node.args[0]
        elif isinstance(function, ast.Attribute) and function.attr in METHODS:
            path, modes = function.value, node.args[:1]
        if path is None or ast.unparse(path) in NO_PATHS:
            continue
        if ast.unparse(function).endswith("open"):
            modes = [*modes, *(word.value for word in node.keywords if word.arg == "mode")]
            if not reads(modes[0] if modes else None):
                continue
        if not ast.unparse(path).startswith("regular_file("):
            yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_regular_files_are_read(path):
    if name_of(path) not in CHECKED_BEFORE:
        assert [*unchecked_reads(path.read_text())] == []


def test_no_exception_is_out_of_date():
    assert {name_of(path) for path in SOURCES} >= CHECKED_BEFORE.keys()
    for name in CHECKED_BEFORE:
        assert [*unchecked_reads((ROOT / "ofa_exit" / name).read_text())], name


@pytest.mark.parametrize(
    "call",
    [
        "open(path)",
        "open(path, 'rb')",
        "open(path, mode='r')",
        "open(path, encoding='utf-8')",
        "Path(path).open()",
        "path.open('rb')",
        "path.read_text()",
        "path.read_bytes()",
        "np.load(path)",
        "torch.load(path, weights_only=True)",
    ],
)
def test_the_walk_sees_bare_reads(call):
    assert [*unchecked_reads(call)]


@pytest.mark.parametrize(
    "call",
    [
        "open(path, 'w')",
        "path.open('ab')",
        "path.open(mode='wb')",
        "open(regular_file(path))",
        "regular_file(path).read_text()",
        "np.load(regular_file(path))",
        "Image.open(io.BytesIO(data))",
    ],
)
def test_the_walk_passes_checked_reads_and_writes(call):
    assert not [*unchecked_reads(call)]

"""Who may know what: the import table of the design, enforced on the sources; and the user-dir."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "ofa_exit"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "user_dir").rglob("*.py")])
PARTS = (
    "policies",
    "heads",
    "runtime",
    "models",
    "objectives",
    "data",
    "prepare",
    "evaluation",
    "plugin",
    "cli",
)

# What each part may import besides itself and the standard library.
ALLOWED = {
    "policies": {"regular_files", "torch"},
    "heads": {"torch"},
    "runtime": {"policies", "heads", "torch"},
    "models": {
        *("runtime", "heads", "policies", "ranges", "regular_files", "spelling", "torch"),
        "torchvision",
    },
    "objectives": {"torch"},
    "data": {
        *("regular_files", "writing", "torch", "torchvision", "PIL", "numpy", "filelock", "tqdm"),
        "sentencepiece",
    },
    "prepare": {
        *("data", "regular_files", "writing", "torch", "PIL", "numpy", "filelock", "ijson", "tqdm"),
        "transformers",
    },
    "evaluation": {
        *("regular_files", "runtime", "torch", "numpy", "scipy", "pycocoevalcap", "sacrebleu"),
        *("matplotlib", "tabulate", "writing"),
    },
    "plugin": {
        *("policies", "heads", "runtime", "models", "objectives", "data", "evaluation"),
        *("ranges", "regular_files", "spelling", "writing", "fairseq", "fairseq_cli", "omegaconf"),
        *("numpy", "torch"),
    },
    "spelling": set(),
    "ranges": {"spelling"},
    "cli": {
        *(*PARTS, "__init__", "testing", "regular_files", "spelling", "writing"),
        *("fairseq", "torch", "numpy", "PIL", "tqdm", "tabulate"),
    },
    "regular_files": set(),
    "writing": set(),
    "testing": {"models", "fairseq", "torch", "numpy"},
    "__main__": {"cli"},
    "__init__": {"plugin"},
    "user_dir": {"plugin"},
}
EXCEPTIONS = {
    # fairseq's classes enter the models in one file.
    "ofa_exit/models/ofa.py": {"fairseq"},
}
# Module names of the previous release: they print their new name and import nothing else.
SHIMS = {path for path in SOURCES if "ofa_exit.cli.renamed import run\n" in path.read_text()}
SHIM_IMPORTS = ["ofa_exit.cli.renamed.run"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """policies, models, … or the name of a file that belongs to none."""
    if path.parent == ROOT / "user_dir":
        return "user_dir"
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else path.stem


def imported(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import, wherever it stands in the file."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*module, alias.name])) for alias in node.names)


def forbidden_imports(path: Path, source: str) -> list[str]:
    part = part_of(path)
    allowed = ALLOWED[part] | EXCEPTIONS.get(name_of(path), set())
    wrong = []
    for line, name in imported(path, ast.parse(source)):
        top, _, rest = name.partition(".")
        if top == "ofa_exit":
            top = rest.split(".")[0] or "__init__"
            if top == part:
                continue
        elif top in sys.stdlib_module_names:
            continue
        if top not in allowed:
            wrong.append(f"{name_of(path)}:{line} imports {name}")
    return wrong


def decorators(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", []):
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            yield decorator.lineno, ast.unparse(target).split(".")[-1]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path):
    if path in SHIMS:
        names = [name for _, name in imported(path, ast.parse(path.read_text()))]
        assert names == SHIM_IMPORTS and part_of(path) != "cli"
    else:
        assert forbidden_imports(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("policies/x.py", "import fairseq"),
        ("policies/x.py", "from ofa_exit.models import decoder"),
        ("policies/x.py", "from ..models.decoder import Decoder"),
        ("policies/x.py", "from .. import models"),
        ("models/x.py", "def f():\n    from fairseq.models import FairseqEncoder"),
        ("models/deep/x.py", "from ...plugin.tasks import base"),
        ("objectives/x.py", "import numpy as np"),
        ("data/x.py", "from ofa_exit import plugin"),
    ],
)
def test_the_walk_sees_what_is_forbidden(file, line):
    assert forbidden_imports(PACKAGE / file, line)


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions and under conditions count, too."""
    modules = {module_of(path): path for path in SOURCES}
    imports = {}
    for module, path in modules.items():
        named = [name for _, name in imported(path, ast.parse(path.read_text()))]
        found = {name if name in modules else name.rpartition(".")[0] for name in named}
        imports[module] = {name for name in found if name in modules} - {module}
    while True:  # what imports nothing that is left cannot be part of a circle
        leaves = {module for module, names in imports.items() if not names & imports.keys()}
        if not leaves:
            break
        imports = {module: names for module, names in imports.items() if module not in leaves}
    assert imports == {}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_import_is_for_type_checkers_only(path):
    assert "TYPE_CHECKING" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_plugin_registers_with_fairseq(path):
    found = [
        f"{name_of(path)}:{line} @{name}"
        for line, name in decorators(ast.parse(path.read_text()))
        if name.startswith("register_")
    ]
    assert part_of(path) == "plugin" or found == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_device_is_assumed_and_no_check_is_switched_off(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            where = f"{name_of(path)}:{node.lineno}"
            assert not (isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"), where
            unsafe = [k for k in node.keywords if k.arg == "weights_only" and not k.value.value]
            assert not unsafe, where


def test_every_part_is_there():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(PARTS)
    assert {part_of(path) for path in SOURCES if path not in SHIMS} == set(ALLOWED)


# Imports fairseq as its commands do, then the folder given as --user-dir.
IMPORT_USER_DIR = """
import argparse, sys
from fairseq import utils
utils.import_user_module(argparse.Namespace(user_dir=sys.argv[1]))
from fairseq.criterions import CRITERION_REGISTRY
import ofa_exit
print(CRITERION_REGISTRY["mue_loss"].__module__, ofa_exit.__path__[0])
"""


def run(*command: str, cwd: Path, path: Path) -> str:
    """Run Python in a folder with another on its path; its last line of output."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=cwd,
        env={"PYTHONPATH": str(path), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("\n")[2]


def test_user_dir_from_another_folder(tmp_path):
    printed = run("-c", IMPORT_USER_DIR, str(ROOT / "user_dir"), cwd=tmp_path, path=ROOT)
    assert printed == f"ofa_exit.plugin.criterions.mue {PACKAGE}"


def files_under(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_user_dir_of_an_installed_package(tmp_path):
    """Built as pip builds it, away from the checkout."""
    site = tmp_path / "site-packages"
    run("setup.py", "-q", "build_py", "--build-lib", str(site), cwd=ROOT, path=tmp_path)
    user_dir = run("-m", "ofa_exit", "user-dir", cwd=tmp_path, path=site)
    assert user_dir == str(site / "ofa_exit" / "user_dir")
    printed = run("-c", IMPORT_USER_DIR, user_dir, cwd=tmp_path, path=site)
    assert printed == f"ofa_exit.plugin.criterions.mue {site / 'ofa_exit'}"
    assert files_under(site / "ofa_exit") - {Path("user_dir/__init__.py")} == files_under(PACKAGE)

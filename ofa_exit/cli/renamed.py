"""Module names of the previous release: print the new command, then run it."""

import importlib
import sys
from collections.abc import Sequence

from ofa_exit.cli.main import VERBS, main
from ofa_exit.cli.user_dir import PACKAGE


def run(old: str, new: str) -> None:
    """Run ``new``, a verb or an example, for ``python -m old``; exit with its status."""
    is_verb = new in VERBS
    command = f"ofa-exit {new}" if is_verb else f"python -m {new}"
    print(f"python -m {old} is now {command}", file=sys.stderr)
    arguments = sys.argv[1:]
    sys.exit(main([new, *arguments]) if is_verb else run_example(new, arguments))


def run_example(name: str, argv: Sequence[str]) -> int:
    """Run an example, which only a checkout has; return its status."""
    checkout = PACKAGE.parent
    if not checkout.joinpath(*name.split(".")).is_dir():
        print(f"error: {name} is not installed: run it in a checkout of ofa-exit", file=sys.stderr)
        return 2
    sys.path.insert(0, str(checkout))
    return importlib.import_module(f"{name}.__main__").main(list(argv))

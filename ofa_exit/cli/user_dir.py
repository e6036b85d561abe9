"""Print the folder to give fairseq as --user-dir:

    fairseq-generate DATA --user-dir $(ofa-exit user-dir) …
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def user_dir() -> Path | None:
    """Return the folder: inside an installed package, beside the package in a checkout."""
    places = (PACKAGE / "user_dir", PACKAGE.parent / "user_dir")
    return next((place for place in places if (place / "__init__.py").is_file()), None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ofa-exit user-dir",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    folder = user_dir()
    if folder is None:
        print(f"error: {PACKAGE} has no user_dir: reinstall ofa-exit", file=sys.stderr)
        return 1
    print(folder)
    return 0

"""Print the folder to give fairseq as --user-dir:

fairseq-generate DATA --user-dir $(ofa-exit user-dir) …
"""

from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, print_error

PACKAGE = Path(__file__).parents[1]


def user_dir() -> Path | None:
    """Return the folder: inside an installed package, next to the package in a checkout."""
    places = (PACKAGE / "user_dir", PACKAGE.parent / "user_dir")
    return next((place for place in places if (place / "__init__.py").is_file()), None)


def main(argv: Sequence[str] | None = None) -> int:
    new_parser("user-dir", __doc__).parse_args(argv)
    folder = user_dir()
    if folder is None:
        return print_error("user-dir", f"{PACKAGE} has no user_dir: reinstall ofa-exit")
    print(folder)
    return 0

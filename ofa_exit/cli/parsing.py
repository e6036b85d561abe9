"""The parser of a verb."""

import argparse
from typing import Any


def new_parser(verb: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return a parser that calls itself ``ofa-exit VERB`` and prints the description as it is."""
    return argparse.ArgumentParser(
        prog=f"ofa-exit {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )

"""The parser of a verb, and options that verbs share."""

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


def add_caption_columns(parser: argparse.ArgumentParser) -> None:
    """Add the option for the columns of a caption file that has uniq-id, image id, caption, …"""
    parser.add_argument(
        "--selected-cols",
        default="1,2",
        metavar="I,C",
        help="columns of image id and caption (default: %(default)s, as in OFA's files)",
    )

"""What verbs share: the parser, options, and how errors are printed."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Optional

from ofa_exit.regular_files import check_output
from ofa_exit.spelling import unknown_option
from ofa_exit.writing import WriteError

INTERRUPTED = 130  # as shells number it
Main = Callable[[Optional[Sequence[str]]], int]


class OneLineParser(argparse.ArgumentParser):
    """A parser that rejects an unknown option on one line, with the nearest known one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        reject_unknown_option(self, sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)


def reject_unknown_option(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """End the process with status 2 and one line if ``parser`` does not know an option."""
    error = unknown_option(parser, list(arguments))
    if error is not None:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def new_parser(verb: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return a parser that calls itself ``ofa-exit VERB`` and prints the description as it is."""
    return OneLineParser(
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


def check_outputs(args: argparse.Namespace, *names: str, inputs: Any = ()) -> None:
    """Raise ValueError if an output, given as one of ``names``, is an input or no regular file.

    Args:
        inputs: what names files beside the other arguments.
    """
    for name in names:
        path = getattr(args, name)
        if path is not None:
            others = [value for key, value in vars(args).items() if key not in names]
            check_output(name.upper(), path, [others, inputs])


def print_error(verb: str, error: object) -> int:
    """Print an error that the user can mend as argparse prints its own; return its status."""
    print(f"ofa-exit {verb}: error: {error}", file=sys.stderr)
    return 2


def prints_errors(
    verb: str, *kinds: type[Exception], resumes: bool = False
) -> Callable[[Main], Main]:
    """Decorate a verb's ``main``: print errors of these kinds on one line, and return status 2.

    Files that cannot be written are always printed so. Ctrl-C, too, takes one line if the verb
    ``resumes`` what it has begun.
    """

    printed: tuple[type[Exception], ...] = (*kinds, WriteError)

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Optional[Sequence[str]] = None) -> int:
            try:
                return main(argv)
            except printed as error:
                return print_error(verb, error)
            except KeyboardInterrupt:
                if not resumes:
                    raise
                print("interrupted: the same command resumes", file=sys.stderr)
                return INTERRUPTED

        return run

    return decorate

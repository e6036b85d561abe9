"""Command line: `python -m examples.emoji.builder build|check|baseline`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ofa_exit.data.files import write_bytes

from .errors import EmojiDataError


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.emoji.builder",
        description="Captioning and entailment data from published emoji artwork.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build",
        help="make the TSV files",
        description="Fetch the npm packages, render the artwork and write TSV files, dict.txt, "
        "manifest and licences. An interrupted build resumes: fetched packages and rendered "
        "images are kept in OUT/cache.",
    )
    build.add_argument("--out", type=Path, default=Path("data/emoji"), metavar="DIR",
                       help="folder of the full build (default %(default)s)")  # fmt: skip
    build.add_argument("--compact", type=Path, metavar="DIR",
                       help="also write the compact build there (same dict.txt)")  # fmt: skip
    build.add_argument("--packages", type=Path, metavar="DIR",
                       help="folder of unpacked npm packages; npm is not used")  # fmt: skip
    build.add_argument("--size", type=int, default=64, metavar="PIXELS",
                       help="side of the images (default %(default)s)")  # fmt: skip
    build.add_argument("--seed", type=int, default=1, help="of all choices (default %(default)s)")
    for name, text in (
        ("check", "verify a build: checksums, images, ids, leaks between splits"),
        ("baseline", "train a classifier on hypotheses alone and print its accuracy per split"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="folder of a build")
    return parser


def run(options: argparse.Namespace) -> None:
    """Run the command; it is imported late so that --help is fast."""
    if options.command == "build":
        from . import build, check

        if options.size < 8:
            raise EmojiDataError(f"--size {options.size}: give at least 8 pixels")
        # The full build is far too large for a repository.
        write_bytes(options.out / ".gitignore", b"*\n")
        source = build.prepare(options.out / "cache", options.packages, options.size, options.seed)
        full = build.make_tables(source, build.FULL)
        words = build.dictionary(source, full)
        build.write_build(options.out, source, build.FULL, full, words)
        check.check_build(options.out)
        if options.compact is not None:
            compact = build.make_tables(source, build.COMPACT)
            build.write_build(options.compact, source, build.COMPACT, compact, words)
            check.check_build(options.compact)
    elif options.command == "check":
        from . import check

        check.check_build(options.folder)
    else:
        from . import baseline

        baseline.report(options.folder)


def main(arguments: list[str] | None = None) -> int:
    try:
        run(make_parser().parse_args(arguments))
    except EmojiDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

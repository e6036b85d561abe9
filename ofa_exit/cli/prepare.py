"""Command line: ``ofa-exit prepare NAME ROOT OUT``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import coco, gqa, nocaps, okvqa, snli_ve, visdial, vizwiz, vqa
from .images import Files
from .job import run
from .records import PrepareError

RELEASES = {
    "coco": coco,
    "nocaps": nocaps,
    "snli_ve": snli_ve,
    "vqa": vqa,
    "okvqa": okvqa,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "visdial": visdial,
}
_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ofa-exit prepare",
        description="OFA TSV files from the official releases. NAME --help tells what to download.",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, release in RELEASES.items():
        command = commands.add_parser(
            name,
            help=release.HELP.split(":", maxsplit=1)[0].split(",", maxsplit=1)[0],
            description=release.HELP
            + "\n\nFiles are found by name, at any depth. A killed run goes on where it was; a "
            "file that is\nwhole has its FILE.manifest.json beside it.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("root", type=Path, help="folder of the unpacked downloads")
        command.add_argument("out", type=Path, help="folder for the TSV files")
        command.add_argument(
            "--splits", nargs="+", choices=list(release.SPLITS), metavar="SPLIT",
            help=f"which to make, of {', '.join(release.SPLITS)} (default: those whose files are "
            "there)",
        )  # fmt: skip
        command.add_argument(
            "--images", nargs="+", type=Path, default=[], metavar="DIR",
            help="further folders of images, searched after ROOT",
        )  # fmt: skip
        command.add_argument(
            "--skip-missing", action="store_true",
            help="leave out records that are malformed or lack a readable image, instead of "
            "stopping; either way FILE.problems.txt lists them all",
        )  # fmt: skip
        command.add_argument(
            "--strict-counts", action="store_true",
            help="stop when the annotations do not hold the published numbers, instead of warning",
        )  # fmt: skip
        release.add_options(command)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    release = RELEASES[options.name]
    try:
        files = Files([options.root, *options.images])
        for job in release.jobs(options, files):
            run(
                job,
                files,
                skip_missing=options.skip_missing,
                strict_counts=options.strict_counts,
            )
    except (PrepareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

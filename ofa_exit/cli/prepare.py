"""Convert the official release of a data set to the TSV files of OFA.

  ofa-exit prepare NAME ROOT OUT

ofa-exit prepare NAME --help lists what to download.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.prepare import coco, gqa, nocaps, okvqa, rsicd, snli_ve, visdial, vizwiz, vqa, vqa_rad
from ofa_exit.prepare.images import Files
from ofa_exit.prepare.job import run
from ofa_exit.prepare.records import PrepareError

RELEASES = {
    "coco": coco,
    "nocaps": nocaps,
    "snli_ve": snli_ve,
    "vqa": vqa,
    "okvqa": okvqa,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "visdial": visdial,
    "rsicd": rsicd,
    "vqa_rad": vqa_rad,
}


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("prepare", __doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, release in RELEASES.items():
        command = commands.add_parser(
            name,
            help=release.HELP.split(":", maxsplit=1)[0].split(",", maxsplit=1)[0],
            description=release.HELP
            + "\n\nFiles are found by name, at any depth. A killed run resumes. A complete file "
            "has its\nFILE.manifest.json next to it.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("root", type=Path, help="folder of the unpacked downloads")
        command.add_argument("out", type=Path, help="folder for the TSV files")
        command.add_argument(
            "--splits", nargs="+", choices=list(release.SPLITS), metavar="SPLIT",
            help=f"splits to make, of {', '.join(release.SPLITS)} (default: those whose files "
            "exist)",
        )  # fmt: skip
        command.add_argument(
            "--images", nargs="+", type=Path, default=[], metavar="DIR",
            help="further folders of images, searched after ROOT",
        )  # fmt: skip
        command.add_argument(
            "--skip-missing", action="store_true",
            help="leave out records that are malformed or lack a readable image, instead of "
            "stopping; FILE.problems.txt lists them either way",
        )  # fmt: skip
        command.add_argument(
            "--strict-counts", action="store_true",
            help="stop if the annotations do not have the published counts, instead of warning",
        )  # fmt: skip
        if hasattr(release, "add_options"):
            release.add_options(command)
    return parser


@prints_errors("prepare", PrepareError, OSError, resumes=True)
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    release = RELEASES[options.name]
    files = Files([options.root, *options.images])
    for job in release.jobs(options, files):
        run(job, files, skip_missing=options.skip_missing, strict_counts=options.strict_counts)
    return 0

"""Make an OFA TSV file of your own images.

  ofa-exit tsv FOLDER OUT.tsv                     a row per image, without captions: to generate
  ofa-exit tsv FILE.csv OUT.tsv --task caption    with the texts of a CSV file

Of FOLDER, the images of its sub-folders are taken, too. The CSV file has a header. Its columns are
image (a path relative to the CSV file) and
  caption   caption, several joined by &&
  vqa       question, answer; several answers joined by &&, or OFA's 1.0|!+yes&&0.6|!+no
  snli_ve   hypothesis, label, and premise if there is one
and id, if rows have names. A caption, answer or label may be empty in rows to generate for. Broken
images, and rows whose texts have no words, are listed and left out; the exit status is then 1.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ofa_exit.cli import dict as dictionary
from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors
from ofa_exit.cli.task_rows import add_image_limit, task_name
from ofa_exit.prepare.records import MalformedError, PrepareError

TASKS = ("caption", "snli_ve", "vqa")


def build_parser() -> Any:
    parser = new_parser("tsv", __doc__)
    parser.add_argument("source", type=Path, metavar="FOLDER|CSV", help="images, or a CSV of them")
    parser.add_argument("out", type=Path, metavar="OUT.tsv", help="file to write")
    parser.add_argument(
        "--task", type=task_name, choices=TASKS, default="caption",
        help="what the rows are for; entailment is snli_ve, too (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--paths", action="store_true",
        help="write paths of the images, relative to OUT, in place of their content",
    )  # fmt: skip
    parser.add_argument(
        "--split-captions", action="store_true",
        help="write a row for each caption of a cell: training rows have one",
    )  # fmt: skip
    parser.add_argument(
        "--dict", action="store_true", help="also write dict.txt next to OUT (see ofa-exit dict)"
    )
    parser.add_argument("--labels", help="with --dict: labels of the file, as in true,false")
    add_image_limit(parser)
    return parser


@prints_errors("tsv", PrepareError, ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_outputs(args, "out")
    if args.source.is_dir() and args.task != "caption":
        raise ValueError(
            f"{args.source}: a folder has no texts for --task {args.task}. Give a CSV file with "
            "the columns that --help names"
        )
    if not args.source.exists():
        raise ValueError(f"{args.source}: no such folder or CSV file. Check the path")
    if args.dict and (args.out.parent / "dict.txt").exists():
        raise ValueError(
            f"{args.out.parent / 'dict.txt'} exists already, and checkpoints may need its words in "
            "their order. Remove it, or continue it with ofa-exit dict --start-from"
        )
    from tqdm import tqdm

    from ofa_exit.data.files import atomic_write
    from ofa_exit.prepare.own import COLUMNS, image_field

    written, left_out, args.add_caption = 0, 0, False
    with atomic_write(args.out) as out:
        for row in tqdm(
            list(_rows(args)),
            desc=args.out.name,
            unit=" images",
            delay=1,
            leave=False,
            disable=None,  # without a terminal
        ):
            try:
                if row.problem:
                    raise MalformedError(row.problem)
                folder = args.out.parent if args.paths else None
                image = image_field(row.image, folder, args.max_image_pixels)
            except MalformedError as error:
                left_out += 1
                image_name = "" if row.problem or args.source.is_dir() else f"{row.image}: "
                tqdm.write(f"{row.place}: {image_name}{error}")
                continue
            out.write(("\t".join(COLUMNS[args.task](row, image)) + "\n").encode())
            written += 1
            args.add_caption = args.add_caption or bool(row.texts.get("premise"))
        if not written:
            raise PrepareError(f"{args.source}: none of the {left_out} rows can be used")
    print(f"{args.out}: {written} rows" + (f", {left_out} left out" if left_out else ""))
    status = int(left_out > 0)
    if args.dict:
        args.selected_cols, args.add_object, args.max_object_length = None, False, None
        status |= dictionary.write_dictionary(args.out.parent / "dict.txt", [args.out], args)
    return status


def _rows(args: Any) -> Iterator[Any]:
    from ofa_exit.prepare.own import csv_rows, folder_rows, split_captions

    if args.source.is_dir():
        yield from folder_rows(args.source)
        return
    for row in csv_rows(args.source, args.task):
        yield from split_captions(row) if args.split_captions else [row]

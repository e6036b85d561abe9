"""Write the dictionary of data whose text is split into words, dict.txt.

  ofa-exit dict OUT/dict.txt TRAIN.tsv … --task caption

Texts are lower-cased and split as the task does it; the most frequent words come first. The words
of all tasks' prompts, the answers yes, maybe and no (and those of --labels), ?, " and && are always
in it. A checkpoint knows words by their number: to continue from one, --start-from keeps the words
of its dict.txt first and in order, and new ones follow. Data with GPT-2's BPE need no dictionary of
their own: --bpe-dir names the folder of OFA's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.cli.task_rows import add_row_options, open_examples
from ofa_exit.regular_files import check_output

ROWS_SHOWN = 5


def write_dictionary(
    out: Path, files: Sequence[Path], args: argparse.Namespace, start_from: Path | None = None
) -> int:
    """Write and report the dictionary of ``files``. Return 1 if a row was left out, otherwise 0.

    Args:
        args: the options of `add_row_options`.
        start_from: a dict.txt whose words come first.
    """
    from tqdm import tqdm

    from ofa_exit.data import dictionary
    from ofa_exit.data.files import write_bytes

    first = [] if start_from is None else dictionary.read_dictionary(start_from)
    encoder, vocabulary = dictionary.counting_encoder()
    errors = []
    for path in files:
        examples = open_examples(path, args, encoder, references_optional=True)
        rows = tqdm(
            range(len(examples)), desc=path.name, unit=" rows", delay=2, leave=False, disable=None
        )
        errors += dictionary.count_rows(examples, rows)
    required = dictionary.required_symbols(args.labels)
    lines = dictionary.dictionary_lines(vocabulary.counts, required, first)
    write_bytes(out, "".join(f"{line}\n" for line in lines).encode())
    new = f", {len(lines) - len(first)} of them new" if first else ""
    print(f"{out}: {len(lines)} words{new}")
    for error in errors[:ROWS_SHOWN]:
        print(error, file=sys.stderr)
    if errors:
        print(f"{len(errors)} rows were left out: ofa-exit check lists them", file=sys.stderr)
    return int(bool(errors))


@prints_errors("dict", ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("dict", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, FOLDER/dict.txt")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.tsv", help="training data, one or several"
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="DICT", help="dict.txt of the checkpoint to continue"
    )
    add_row_options(parser)
    args = parser.parse_args(argv)
    check_output("OUT", args.out, args.files)  # it may be the dictionary that it continues
    return write_dictionary(args.out, args.files, args, args.start_from)

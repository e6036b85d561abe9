"""Read a whole TSV file as training or generation reads it, and list every bad row.

  ofa-exit check TRAIN.tsv --task caption

Prints FILE:LINE: REASON for each row that would stop a run, with images decoded, and how many rows
have words that the dictionary lacks. Exit status 1 if a row is bad. --use says what the file is
for: training rows have one caption, validation rows may have several, and rows to generate for need
none. By default a file whose name has `train` in it is for training, any other for validation.
Validation is that with --eval-acc, --eval-mrr and their like: every row needs what they measure.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ofa_exit.cli.parsing import new_parser, prints_errors
from ofa_exit.cli.task_rows import add_image_limit, add_row_options, example_classes, open_examples

USES = ("training", "validation", "generation")
ROWS_PER_JOB = 16
THREADS = min(8, os.cpu_count() or 1)


def make_encoder(args: argparse.Namespace) -> tuple[Any, str]:
    """Return the encoder of texts, and which dictionary it has, to print.

    Without --bpe-dir and without a dict.txt in the file's folder, it knows every word.
    """
    from ofa_exit.data.dictionary import counting_encoder
    from ofa_exit.data.text import TextEncoder, check_prompt_words, load_codec

    folder = args.bpe_dir or args.file.parent
    if args.bpe_dir is None and not (folder / "dict.txt").is_file():
        return counting_encoder()[0], "no dictionary: words are not looked up"
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    from ofa_exit.plugin.vocabulary import OFADictionary

    dictionary = OFADictionary.of_folder(folder, code_dict_size=0, num_bins=0)
    encoder = TextEncoder(load_codec(folder, get_encoder), dictionary)
    check_prompt_words(encoder, example_classes()[args.task].prompt_texts(args))
    return encoder, f"dictionary of {folder}"


def answer_trie(args: argparse.Namespace, encoder: Any) -> Any:
    """Return the closed set of --answers, or None."""
    if args.answers is None:
        return None
    from ofa_exit.data.trie import AnswerTrie
    from ofa_exit.data.vqa import read_answers

    if args.task != "vqa":
        raise ValueError(f"--answers: --task {args.task} has no list of answers. Leave it out")
    answers = read_answers(args.answers, encoder).values()
    return AnswerTrie(answers, encoder.vocabulary.eos())


def prompt_option(args: argparse.Namespace) -> dict[str, str]:
    """Return the argument of the examples that --prompt-type gives."""
    from ofa_exit.data.example import PROMPT_TYPES

    if args.prompt_type is None:
        return {}
    if args.task not in ("snli_ve", "vqa"):
        raise ValueError(f"--prompt-type: --task {args.task} has no such option. Leave it out")
    if args.prompt_type not in PROMPT_TYPES:
        raise ValueError(
            f"--prompt-type {args.prompt_type!r}: choose from {', '.join(PROMPT_TYPES)}"
        )
    return {"prompt_type": args.prompt_type}


def check_answers(examples: Any, metric: str) -> None:
    """Let the measure of --eval-acc check every row's answers. Print if the file has none."""
    from ofa_exit.plugin.scorers.measures import MEASURES, measure_of_rows

    try:
        measure = measure_of_rows(examples, metric)
    except ValueError as error:
        print(error)
        # Rows without answers fit no measure. If only some rows have ten, the others are wrong.
        measure = MEASURES.get(metric, MEASURES["vqa_accuracy"])
    examples.check_answers = measure.check


def check_rows(examples: Any, rows: Sequence[int]) -> Iterator[tuple[int, str, bool]]:
    """Yield each row's number, what is wrong with it, "" for a good one, and if a word is unknown.

    Reads in several threads: decoding images releases Python's lock.
    """
    from ofa_exit.data.tsv import TsvError

    def check(start: int) -> list[tuple[int, str, bool]]:
        results = []
        for row in rows[start : start + ROWS_PER_JOB]:
            try:
                unknown = bool(examples[row].unknown)
                results.append((row, "", unknown))
            except TsvError as error:
                if error.line is None:  # the file has changed
                    raise
                results.append((row, reason(error), False))
        return results

    # A part of the jobs at a time, because all of their futures would fill the memory.
    starts, step = range(0, len(rows), ROWS_PER_JOB), 64 * THREADS
    with ThreadPoolExecutor(THREADS) as pool:
        for part in range(0, len(starts), step):
            for results in pool.map(check, starts[part : part + step]):
                yield from results


def reason(error: Any) -> str:
    """Return an error of a row as FILE:LINE: REASON."""
    field = f"{error.field}: " if error.field else ""
    remedy = f". {error.remedy}" if error.remedy else ""
    return f"{error.path}:{error.line}: {field}{error.message}{remedy}"


@prints_errors("check", ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("check", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE.tsv")
    add_row_options(parser)
    parser.add_argument("--use", choices=USES, help="what the file is for (default: by its name)")
    parser.add_argument(
        "--bpe-dir",
        type=Path,
        metavar="DIR",
        help="folder of the dictionary (default: the file's, if it has a dict.txt)",
    )
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="vqa: the answers to choose from"
    )
    parser.add_argument(
        "--vqa-metric", metavar="NAME",
        help="vqa: what validation measures (default: auto, as the first rows' answers say)",
    )  # fmt: skip
    parser.add_argument(
        "--prompt-type", metavar="TYPE", help="snli_ve and vqa: decoder prompt before the answer"
    )
    add_image_limit(parser)
    args = parser.parse_args(argv)
    if args.vqa_metric is not None:
        if args.task != "vqa":
            raise ValueError(f"--vqa-metric: --task {args.task} has none. Leave it out")
        from ofa_exit.plugin.scorers.measures import check_metric

        check_metric(args.vqa_metric)
    from tqdm import tqdm

    use = args.use or ("training" if "train" in args.file.stem else "validation")
    encoder, chosen = make_encoder(args)
    options: dict[str, Any] = prompt_option(args)
    if args.task == "visdial":
        options["needs_truth"] = use == "validation"
    examples = open_examples(
        args.file,
        args,
        encoder,
        args.max_image_pixels,
        train=use == "training",
        references_optional=use == "generation",
        trie=answer_trie(args, encoder),
        **options,
    )
    if args.task == "vqa" and use == "validation":
        check_answers(examples, args.vqa_metric or "auto")
    bad = unknown = 0
    with tqdm(
        total=len(examples), desc=args.file.name, unit=" rows", delay=1, leave=False, disable=None
    ) as bar:
        for _, problem, has_unknown in check_rows(examples, range(len(examples))):
            bar.update()
            unknown += has_unknown
            if problem:
                bad += 1
                bar.clear()
                print(problem, flush=True)
    print(f"{args.file}: {len(examples)} rows for {use}, {bad} of them bad ({chosen})")
    if unknown:
        print(f"rows with words that the dictionary lacks, which are read as unknown: {unknown}")
    return int(bad > 0)

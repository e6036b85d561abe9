"""``ofa-exit score BENCHMARK …``: the official metrics of a result file.

Result files are those of each benchmark's server (SNLI-VE has none: see its help);
`ofa-exit submit` writes them from what fairseq-generate wrote.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.evaluation.metrics.caption_results import score_coco, score_nocaps
from ofa_exit.evaluation.metrics.captions import TOKENIZERS
from ofa_exit.evaluation.metrics.gqa import score_gqa
from ofa_exit.evaluation.metrics.results import Scores
from ofa_exit.evaluation.metrics.snli_ve import score_snli_ve
from ofa_exit.evaluation.metrics.visdial import score_visdial
from ofa_exit.evaluation.metrics.vqa import score_vizwiz, score_vqa

# Benchmark → what its result file looks like, and its annotations file.
BENCHMARKS = {
    "vqa": (
        'VQA v2: VQA accuracy. [{"question_id": 1, "answer": "yes"}, …]',
        "v2_mscoco_val2014_annotations.json",
    ),
    "okvqa": (
        'OK-VQA: VQA accuracy. [{"question_id": 1, "answer": "yes"}, …]',
        "mscoco_val2014_annotations.json",
    ),
    "vizwiz": (
        'VizWiz-VQA: its accuracy. [{"image": "VizWiz_val_00000000.jpg", "answer": "yes"}, …]',
        "val.json",
    ),
    "gqa": (
        "GQA: accuracy, binary, open, distribution, and more. "
        '[{"questionId": "05451384", "prediction": "yes"}, …]',
        "testdev_balanced_questions.json; several where the questions come in several files",
    ),
    "visdial": (
        "VisDial v1.0: NDCG, MRR, R@1, R@5, R@10, mean rank. "
        '[{"image_id": 1, "round_id": 1, "ranks": [100 integers]}, …]; ranks[i] is that of '
        "candidate i, 1 the best",
        "visdial_1.0_val.json",
    ),
    "coco": (
        'COCO captions: CIDEr, BLEU, METEOR, ROUGE-L, SPICE. [{"image_id": 1, "caption": "a"}, …]',
        "captions_val2014.json, or Karpathy's dataset_coco.json",
    ),
    "nocaps": (
        'NoCaps: the caption metrics by domain. [{"image_id": 1, "caption": "a cat"}, …]',
        "nocaps_val_4500_captions.json",
    ),
    "snli_ve": (
        'SNLI-VE: accuracy. [{"pairID": "1000092795.jpg#0r1e", "prediction": "neutral"}, …]',
        "snli_ve_test.jsonl or snli_ve_dev.jsonl",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ofa-exit score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, (text, file) in BENCHMARKS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--results", type=Path, required=True, help="the result file, JSON")
        command.add_argument(
            "--annotations",
            *(["--questions"] if name == "gqa" else []),
            type=Path,
            required=True,
            help=file,
            **({"nargs": "+"} if name == "gqa" else {}),
        )
        command.add_argument(
            "--allow-missing",
            action="store_true",
            help="score what has a result, where not everything has; the output says so",
        )
        command.add_argument("--json", type=Path, help="also write the scores to this file")
        if name in ("vqa", "okvqa"):
            command.add_argument(
                "--questions", type=Path, help="questions file, to check that all is of one split"
            )
        if name == "gqa":
            command.add_argument(
                "--choices", type=Path, help="val_choices.json, for validity and plausibility"
            )
            command.add_argument(
                "--consistency",
                action="store_true",
                help="also consistency: give results and the file for all questions, not only the "
                "balanced ones",
            )
        if name == "visdial":
            command.add_argument(
                "--dense", type=Path, help="visdial_1.0_val_dense_annotations.json, for NDCG"
            )
        if name == "coco":
            command.add_argument(
                "--split", default="test", help="of Karpathy's file (default: %(default)s)"
            )
        if name in ("coco", "nocaps"):
            command.add_argument(
                "--coco-tokenizer",
                choices=TOKENIZERS,
                default="auto",
                help="ptb needs Java; plain starts none and leaves METEOR and SPICE out; auto is "
                "ptb where Java runs (default)",
            )
    return parser


def compute(given: argparse.Namespace) -> Scores:
    """The scores that the options ask for."""
    files, partly = (given.results, given.annotations), given.allow_missing
    match given.benchmark:
        case "vqa" | "okvqa":
            return score_vqa(*files, given.questions, partly)
        case "vizwiz":
            return score_vizwiz(*files, partly)
        case "gqa":
            return score_gqa(*files, given.choices, given.consistency, partly)
        case "visdial":
            return score_visdial(*files, given.dense, partly)
        case "coco":
            return score_coco(*files, given.split, given.coco_tokenizer, partly)
        case "snli_ve":
            return score_snli_ve(*files, partly)
        case _:
            return score_nocaps(*files, given.coco_tokenizer, partly)


def main(arguments: Sequence[str] | None = None) -> int:
    given = build_parser().parse_args(arguments)
    try:
        scores = compute(given)
        if given.json:
            text = json.dumps(scores.as_dict(), indent=2, ensure_ascii=False)
            given.json.write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(scores.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compute the official metrics of a result file.

  ofa-exit score BENCHMARK --results FILE --annotations FILE

Result files have the format of each benchmark's server (SNLI-VE has no server: see its help).
ofa-exit submit writes them from the output of fairseq-generate.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import check_outputs, new_parser, prints_errors
from ofa_exit.evaluation.metrics.caption_results import score_coco, score_nocaps
from ofa_exit.evaluation.metrics.captions import TOKENIZERS
from ofa_exit.evaluation.metrics.gqa import score_gqa
from ofa_exit.evaluation.metrics.results import Scores
from ofa_exit.evaluation.metrics.snli_ve import score_snli_ve
from ofa_exit.evaluation.metrics.visdial import score_visdial
from ofa_exit.evaluation.metrics.vqa import score_vizwiz, score_vqa
from ofa_exit.evaluation.metrics.vqa_rad import score_vqa_rad

# Benchmark → format of its result file, and name of its annotations file.
BENCHMARKS = {
    "vqa": (
        'VQA v2: VQA accuracy. [{"question_id": 1, "answer": "yes"}, …]',
        "v2_mscoco_val2014_annotations.json",
    ),
    "okvqa": (
        'OK-VQA: VQA accuracy. [{"question_id": 1, "answer": "yes"}, …]',
        "mscoco_val2014_annotations.json",
    ),
    "vqa_tsv": (
        "Own data in OFA's TSV format: exact match for one answer per question, OFA's score for "
        "weighted answers, VQA accuracy for ten annotators. "
        '[{"question_id": "q1", "answer": "yes"}, …]',
        "the TSV file that was answered",
    ),
    "vizwiz": (
        'VizWiz-VQA: its accuracy. [{"image": "VizWiz_val_00000000.jpg", "answer": "yes"}, …]',
        "val.json",
    ),
    "gqa": (
        "GQA: accuracy, binary, open, distribution, and more. "
        '[{"questionId": "05451384", "prediction": "yes"}, …]',
        "testdev_balanced_questions.json; all files if the questions come in several",
    ),
    "visdial": (
        "VisDial v1.0: NDCG, MRR, R@1, R@5, R@10, mean rank. "
        '[{"image_id": 1, "round_id": 1, "ranks": [100 integers]}, …]; ranks[i] is that of '
        "candidate i, 1 the best",
        "visdial_1.0_val.json",
    ),
    "coco": (
        'COCO captions: CIDEr, BLEU, METEOR, ROUGE-L, SPICE. [{"image_id": 1, "caption": "a"}, …]',
        "captions_val2014.json, or Karpathy's dataset_coco.json; also RSICD's dataset_rsicd.json",
    ),
    "nocaps": (
        'NoCaps: the caption metrics by domain. [{"image_id": 1, "caption": "a cat"}, …]',
        "nocaps_val_4500_captions.json",
    ),
    "snli_ve": (
        'SNLI-VE: accuracy. [{"pairID": "1000092795.jpg#0r1e", "prediction": "neutral"}, …]',
        "snli_ve_test.jsonl or snli_ve_dev.jsonl",
    ),
    "vqa_rad": (
        "VQA-RAD: accuracy of all, closed and open questions. "
        '[{"question_id": 10, "answer": "yes"}, …]',
        "VQA_RAD Dataset Public.json",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("score", __doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, (text, file) in BENCHMARKS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--results", type=Path, required=True, help="result file, JSON")
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
            help="score only the entries that have a result; the output says so",
        )
        command.add_argument("--json", type=Path, help="also write the scores to this file")
        if name in ("vqa", "okvqa"):
            command.add_argument(
                "--questions", type=Path, help="questions file, to check that the split matches"
            )
        if name == "vqa_tsv":
            command.add_argument(
                "--columns",
                default="0,3",
                metavar="ID,ANSWERS",
                help="columns of the question's identifier and of its answers (default: "
                "%(default)s, as in OFA's files)",
            )
        if name == "gqa":
            command.add_argument(
                "--choices", type=Path, help="val_choices.json, for validity and plausibility"
            )
            command.add_argument(
                "--consistency",
                action="store_true",
                help="also compute consistency; needs results and questions of the whole split, "
                "not only the balanced ones",
            )
        if name == "visdial":
            command.add_argument(
                "--dense", type=Path, help="visdial_1.0_val_dense_annotations.json, for NDCG"
            )
        if name == "coco":
            command.add_argument(
                "--split", default="test", help="split of Karpathy's file (default: %(default)s)"
            )
        if name in ("coco", "nocaps"):
            command.add_argument(
                "--coco-tokenizer",
                choices=TOKENIZERS,
                default="auto",
                help="ptb needs Java; plain does not, but leaves out METEOR and SPICE; auto (the "
                "default) is ptb if Java runs",
            )
            command.add_argument(
                "--spice-jars",
                metavar="DIR",
                help="folder of SPICE's language models, stanford-corenlp-3.6.0.jar and "
                "stanford-corenlp-3.6.0-models.jar (default: pycocoevalcap's own folder)",
            )
    return parser


def compute(args: argparse.Namespace) -> Scores:
    """Return the scores of the benchmark in the options."""
    files, partial = (args.results, args.annotations), args.allow_missing
    match args.benchmark:
        case "vqa" | "okvqa":
            return score_vqa(*files, args.questions, partial)
        case "vqa_tsv":
            # Imported here: it takes seconds, and no other benchmark needs fairseq.
            from ofa_exit.plugin.scorers.answer_files import score_vqa_tsv

            return score_vqa_tsv(*files, args.columns, partial)
        case "vizwiz":
            return score_vizwiz(*files, partial)
        case "gqa":
            return score_gqa(*files, args.choices, args.consistency, partial)
        case "visdial":
            return score_visdial(*files, args.dense, partial)
        case "coco":
            return score_coco(*files, args.split, args.coco_tokenizer, partial, args.spice_jars)
        case "snli_ve":
            return score_snli_ve(*files, partial)
        case "vqa_rad":
            return score_vqa_rad(*files, partial)
        case _:
            return score_nocaps(*files, args.coco_tokenizer, partial, args.spice_jars)


@prints_errors("score", OSError, ValueError, RuntimeError)
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_outputs(args, "json")
    scores = compute(args)
    if args.json:
        text = json.dumps(dataclasses.asdict(scores), indent=2, ensure_ascii=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    print(scores.text())
    return 0

"""OK-VQA in VQA's format; answers are the release's processed ones (its field ``answer``)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from . import vqa
from .images import Files
from .job import Job
from .splits import Wanted

HELP = """OK-VQA: train.tsv (one row per question and answer, with its confidence) and valid.tsv
(one row per question with all ten answers, for reported results). With --answers N also
answers.txt.

  ROOT/OpenEnded_mscoco_{train2014,val2014}_questions.json
  ROOT/mscoco_{train2014,val2014}_annotations.json   both from https://okvqa.allenai.org/download.html
  ROOT/{train2014,val2014}/COCO_train2014_000000000009.jpg …
       http://images.cocodataset.org/zips/{train2014,val2014}.zip"""

_QUESTIONS = "OpenEnded_mscoco_{}_questions.json"
_ANNOTATIONS = "mscoco_{}_annotations.json"
SPLITS: dict[str, Wanted] = {
    "train": vqa.parts_of(_QUESTIONS, _ANNOTATIONS, "train2014"),
    "valid": vqa.parts_of(_QUESTIONS, _ANNOTATIONS, "val2014"),
    "trainval": vqa.parts_of(_QUESTIONS, _ANNOTATIONS, "train2014", "val2014"),
}
# Marino et al. 2019: 14,055 questions about 14,031 images.
PUBLISHED = {
    "train": {"questions": 9_009, "images": 8_998},
    "valid": {"questions": 5_046, "images": 5_033},
    "trainval": {"questions": 14_055, "images": 14_031},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    vqa.add_options(parser, answers=0, least=1)


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    yield from vqa.question_jobs(options, files, SPLITS, ("train", "valid"), PUBLISHED)

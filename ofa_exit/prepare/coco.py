"""COCO captions in Karpathy's split: one JSON for all splits, images of train2014 and val2014.

Rows are those of ``karpathy``: train.tsv has one row per caption. valid.tsv, test.tsv and
train_stage2.tsv have one row per image.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from . import karpathy
from .images import Files
from .job import Job
from .splits import available

HELP = """COCO captions, Karpathy's split: train.tsv (one row per caption), train_stage2.tsv (one
row per image, for the CIDEr stage), valid.tsv and test.tsv.

  ROOT/dataset_coco.json   from https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip
  ROOT/train2014/COCO_train2014_000000000009.jpg …   http://images.cocodataset.org/zips/train2014.zip
  ROOT/val2014/COCO_val2014_000000000042.jpg …       http://images.cocodataset.org/zips/val2014.zip"""

SPLITS = karpathy.splits("dataset_coco.json")
# Karpathy & Fei-Fei: 113,287 training images (30,504 of them restval) with 566,747 captions.
PUBLISHED = {
    "train": {"rows": 566_747, "images": 113_287},
    "train_stage2": {"rows": 113_287, "images": 113_287},
    "valid": {"rows": 5_000, "images": 5_000},
    "test": {"rows": 5_000, "images": 5_000},
}


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    for split, found in available(SPLITS, options.splits, files):
        path = options.out / f"{split}.tsv"
        yield karpathy.job(
            path, found["captions"], split, PUBLISHED[split], id_key="cocoid", names=_names
        )


def _names(id: str, entry: Any) -> tuple[str, ...]:
    return str(entry["filename"]), f"{int(id):012d}.jpg"

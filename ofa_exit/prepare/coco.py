"""COCO captions in Karpathy's split: one JSON for all splits, images of train2014 and val2014.

Rows are OFA's caption rows: uniq-id, image-id, caption, predicted objects (empty), image. Captions
are lower-cased, as in OFA's release. train.tsv has one row per caption (uniq-id: the sentence's).
valid.tsv, test.tsv and train_stage2.tsv (for training on CIDEr) have one row per image with all
captions joined by ``&&`` (uniq-id: the image's). Karpathy's restval is training data, as usual.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ofa_exit.data.formats import SEPARATOR

from .images import Files
from .job import Job
from .json_stream import elements
from .records import Item, LeftOut, MalformedError, Record, clean, items, require_int
from .splits import available

HELP = """COCO captions, Karpathy's split: train.tsv (one row per caption), train_stage2.tsv (one
row per image, for the CIDEr stage), valid.tsv and test.tsv.

  ROOT/dataset_coco.json   from https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip
  ROOT/train2014/COCO_train2014_000000000009.jpg …   http://images.cocodataset.org/zips/train2014.zip
  ROOT/val2014/COCO_val2014_000000000042.jpg …       http://images.cocodataset.org/zips/val2014.zip"""

_FILES = {"captions": ("dataset_coco.json",)}
SPLITS = dict.fromkeys(("train", "train_stage2", "valid", "test"), _FILES)
_SPLIT_OF_KARPATHY = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
# Karpathy & Fei-Fei: 113,287 training images (30,504 of them restval) with 566,747 captions.
PUBLISHED = {
    "train": {"rows": 566_747, "images": 113_287},
    "train_stage2": {"rows": 113_287, "images": 113_287},
    "valid": {"rows": 5_000, "images": 5_000},
    "test": {"rows": 5_000, "images": 5_000},
}


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    for split, found in available(SPLITS, options.splits, files):
        source = found["captions"]
        yield Job(
            options.out / f"{split}.tsv",
            (source,),
            functools.partial(read, source, split),
            options={"split": split},
            expected=PUBLISHED[split],
        )


def read(source: Path, split: str) -> Iterator[Item]:
    """Yield the rows of ``split`` in the file's order."""

    def make(id: str, entry: Any) -> Iterator[Record | LeftOut]:
        # An unknown split is an error, whatever split is prepared.
        if entry["split"] not in _SPLIT_OF_KARPATHY:
            raise MalformedError(f"split {entry['split']!r}, none of {tuple(_SPLIT_OF_KARPATHY)}")
        if _SPLIT_OF_KARPATHY[entry["split"]] != split.removesuffix("_stage2"):
            return
        names = (str(entry["filename"]), f"{int(id):012d}.jpg")
        captions = [
            (require_int(sentence["sentid"], "sentid"), clean(sentence["raw"], "a caption").lower())
            for sentence in entry["sentences"]
        ]
        if not captions:
            yield LeftOut(id, names, "no captions")
        elif split == "train":
            for number, caption in captions:
                yield Record(str(number), names, (str(number), id, caption, "", None))
        else:
            joined = SEPARATOR.join(caption for _, caption in captions)
            yield Record(id, names, (id, id, joined, "", None))

    def id_of(place: str, entry: Any) -> str:
        return str(require_int(entry["cocoid"], "cocoid"))

    return items(source, elements(source, "images"), id_of, make)

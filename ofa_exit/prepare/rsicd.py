"""RSICD, captions of aerial photographs (Lu et al. 2017): one JSON in Karpathy's form.

Rows are those of ``karpathy``. Images have five captions, but 2.2 distinct ones: the authors filled
up to five by repeating some at random. Repetition says nothing about an image, so train.tsv has
distinct captions. The other files keep all five, on which results are reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from . import dictionary, karpathy
from .images import Files
from .job import Job
from .splits import available

HELP = """RSICD, captions of aerial photographs: train.tsv (one row per distinct caption of an
image), train_stage2.tsv (one row per image, for the CIDEr stage), valid.tsv and test.tsv (one row
per image, with its five captions).

  ROOT/dataset_rsicd.json            from https://github.com/201528014227051/RSICD_optimal
  ROOT/RSICD_images/airport_1.jpg …  images of any size"""

SPLITS = karpathy.splits("dataset_rsicd.json")
# Of the release: 10,921 images. Copies without its duplicates have 8,736, 1,092 and 1,093.
PUBLISHED = {
    "train": {"images": 8_734},
    "train_stage2": {"images": 8_734},
    "valid": {"images": 1_094},
    "test": {"images": 1_093},
}
_FORM: dict[str, Any] = {
    "id_key": "imgid",
    "names": lambda id, entry: (str(entry["filename"]),),
    "distinct": True,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    dictionary.add_option(parser)


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    for split, found in available(SPLITS, options.splits, files):
        source = found["captions"]
        if split == "train":
            karpathy.check_name(source, "RSICD")
        yield karpathy.job(options.out / f"{split}.tsv", source, split, PUBLISHED[split], **_FORM)
        if split == "train":
            captions = dictionary.column(karpathy.read(source, "train", **_FORM), 2)
            dictionary.write(options, source, dictionary.caption_texts(captions))

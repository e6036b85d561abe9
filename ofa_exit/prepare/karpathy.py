"""Captions in Karpathy's form: one JSON for all splits, a list of images with their sentences.

Rows are OFA's caption rows: uniq-id, image-id, caption, predicted objects (empty), image. Captions
are lower-cased, as in OFA's release. train has one row per caption (uniq-id: the sentence's). The
other splits, and train_stage2 (for training on CIDEr), have one row per image with all captions
joined by ``&&`` (uniq-id: the image's). Karpathy's restval is training data, as usual.

A caption without a letter (``.``, ``1 .``) has no words. It is left out and counted, as a target
and as a reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ofa_exit.data.formats import SEPARATOR

from .job import Job
from .json_stream import elements, of_form
from .records import Item, LeftOut, MalformedError, PrepareError, Record, clean, items, require_int
from .splits import Wanted

_SPLIT_OF_KARPATHY = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
NO_WORDS, REPEATED = "captions without words", "repeated captions of an image"


def splits(name: str) -> dict[str, Wanted]:
    """Return the splits that ``name``, a file in this form, has."""
    return {split: {"captions": (name,)} for split in ("train", "train_stage2", "valid", "test")}


def check_name(source: Path, name: str) -> None:
    """Raise PrepareError if the file says that it belongs to another data set than ``name``."""
    found = str(dict(elements(source)).get("dataset", name))[:40]
    if name.lower() not in found.lower():
        raise PrepareError(
            f"{source}: its data set is {found!r}, not {name!r}. Give the file of {name}"
        )


def job(path: Path, source: Path, split: str, expected: Mapping[str, int], **options: Any) -> Job:
    """Return the job of a split. ``options`` are those of `read`."""
    return Job(
        path,
        (source,),
        functools.partial(read, source, split, **options),
        options={"split": split},
        expected=dict(expected),
    )


def read(
    source: Path,
    split: str,
    id_key: str,
    names: Callable[[str, Any], tuple[str, ...]],
    distinct: bool = False,
) -> Iterator[Item]:
    """Yield the rows of ``split`` in the file's order.

    Args:
        id_key: the key of an image's number, which is unique.
        names: returns the file names of an image, from its number and its entry.
        distinct: train on each caption of an image once, however often the image repeats it.
    """

    def make(id: str, entry: Any) -> Iterator[Record | LeftOut]:
        # An unknown split is an error, whatever split is prepared.
        if entry["split"] not in _SPLIT_OF_KARPATHY:
            known = tuple(_SPLIT_OF_KARPATHY)
            raise MalformedError(f"split {entry['split']!r}, none of {known}")
        if _SPLIT_OF_KARPATHY[entry["split"]] != split.removesuffix("_stage2"):
            return
        found = names(id, entry)
        captions = [
            (require_int(sentence["sentid"], "sentid"), clean(sentence["raw"], "a caption").lower())
            for sentence in entry["sentences"]
        ]
        worded = [pair for pair in captions if any(map(str.isalpha, pair[1]))]
        if not worded:
            raise MalformedError("the image has no captions")
        for _ in range(len(captions) - len(worded)):
            yield LeftOut(id, found, NO_WORDS)
        if split == "train":
            seen: set[str] = set()
            for number, caption in worded:
                if distinct and caption in seen:
                    yield LeftOut(id, found, REPEATED)
                    continue
                seen.add(caption)
                yield Record(str(number), found, (str(number), id, caption, "", None))
        else:
            joined = SEPARATOR.join(caption for _, caption in worded)
            yield Record(id, found, (id, id, joined, "", None))

    def id_of(place: str, entry: Any) -> str:
        return str(require_int(entry[id_key], id_key))

    keys = (id_key, "filename", "split", "sentences")
    return items(source, of_form(source, elements(source, "images"), keys), id_of, make)

"""NoCaps validation: zero-shot captions, 10 per image, images of three domains.

Rows are OFA's caption rows, one per image: uniq-id and image-id (both NoCaps' image id, as in
submitted results), captions joined by ``&&`` in the file's order, predicted objects (empty), image.
valid.tsv has all images; valid_in_domain.tsv, valid_near_domain.tsv and valid_out_domain.tsv have
those of one domain.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ofa_exit.data.formats import SEPARATOR

from .images import Files
from .job import Job
from .json_stream import elements
from .records import Item, MalformedError, Problem, Record, clean, items, require_int
from .splits import available

HELP = """NoCaps validation captions: valid.tsv, and one file per domain: in-domain, near-domain,
out-domain.

  ROOT/nocaps_val_4500_captions.json   https://s3.amazonaws.com/nocaps/nocaps_val_4500_captions.json
  ROOT/images/0013ea2087020901.jpg …   from the file's coco_url entries (https://nocaps.org/download)

Captions of the test split are not published."""

SPLITS = {"valid": {"captions": ("nocaps_val_4500_captions.json",)}}
# Agrawal et al. 2019, and the download page: images per domain, with 10 captions each.
PUBLISHED = {None: 4_500, "in-domain": 648, "near-domain": 2_938, "out-domain": 914}


def jobs(options: argparse.Namespace, files: Files) -> Iterator[Job]:
    for split, found in available(SPLITS, options.splits, files):
        source = found["captions"]
        for domain, images in PUBLISHED.items():
            name = split if domain is None else f"{split}_{domain.replace('-', '_')}"
            yield Job(
                options.out / f"{name}.tsv",
                (source,),
                functools.partial(read, source, domain),
                options={"domain": domain},
                expected={"rows": images, "images": images},
            )


def read(source: Path, domain: str | None = None) -> Iterator[Item]:
    """Yield the rows of the images of ``domain``; None: of all images."""
    captions: dict[Any, list[Any]] = defaultdict(list)
    for place, entry in elements(source, "annotations"):
        try:
            captions[require_int(entry["image_id"], "image_id")].append(entry["caption"])
        except (KeyError, TypeError, MalformedError) as error:
            yield Problem(source.name, f"caption {place}", f"the record is malformed ({error})")
    seen = set()

    def make(id: str, entry: Any) -> Iterator[Record]:
        seen.add(int(id))
        if entry["domain"] not in PUBLISHED:
            raise MalformedError(f"the domain {entry['domain']!r} is none of NoCaps")
        if domain is not None and entry["domain"] != domain:
            return
        if not captions[int(id)]:
            raise MalformedError("the image has no captions")
        names = (str(entry["file_name"]), f"{entry.get('open_images_id')}.jpg")
        joined = SEPARATOR.join(clean(caption, "a caption") for caption in captions[int(id)])
        yield Record(id, names, (id, id, joined, "", None))

    def id_of(place: str, entry: Any) -> str:
        return str(require_int(entry["id"], "id"))

    yield from items(source, elements(source, "images"), id_of, make)
    for image in captions.keys() - seen:
        yield Problem(source.name, f"image {image}", "it has captions but is not among the images")

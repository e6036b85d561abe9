"""The build: packages → pictures → splits → TSV files, dictionary and manifest."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ofa_exit.data.files import sha256_of, write_bytes

from . import licenses, splits, tables
from .categories import CATEGORY
from .concepts import load_concepts
from .entailment import balanced_rows
from .hypotheses import Hypothesis, build_hypotheses
from .packages import ARTWORK, NAMES, fetch, locate
from .pictures import Picture, render_all
from .render import RenderCache, encode_webp

UNLIMITED = 10**9


@dataclass(frozen=True)
class Size:
    """Sizes of a build: rows per split, rows per hypothesis and label, WebP quality.

    `webp_quality` None keeps the pictures lossless.
    """

    captions: dict[str, int]
    entailments: dict[str, int]
    per_label: dict[str, int]
    webp_quality: int | None


FULL = Size(
    captions=dict.fromkeys(splits.SPLITS, UNLIMITED),
    entailments={**dict.fromkeys(splits.SPLITS, UNLIMITED), "test_artist": 3000},
    per_label={**dict.fromkeys(splits.SPLITS, 2), "train": 8},
    webp_quality=None,
)
COMPACT = Size(
    captions={"train": 3200, "valid": 250, "test_artist": 300, "test_combinations": 300},
    entailments={"train": 2700, "valid": 300, "test_artist": 300, "test_combinations": 300},
    per_label=dict.fromkeys(splits.SPLITS, 1),
    webp_quality=80,
)


@dataclass(frozen=True)
class Source:
    """What a build of any size is made from."""

    folders: dict[str, Path]
    split: dict[str, list[Picture]]
    hypotheses: list[Hypothesis]
    seed: int
    pixels: int


def prepare(cache: Path, packages: Path | None, pixels: int, seed: int) -> Source:
    """Fetch (or find) the packages, render and split the artwork, generate the hypotheses."""
    wanted = [NAMES, *(one.package for one in ARTWORK)]
    if packages is None:
        found = [
            fetch(one, cache / "packages") for one in tqdm(wanted, desc="packages", unit="package")
        ]
    else:
        found = [locate(one, packages) for one in wanted]
    folders = dict(zip(["names", *(one.name for one in ARTWORK)], found, strict=True))
    concepts = load_concepts(folders["names"])
    pictures = render_all(ARTWORK, folders, concepts, RenderCache(cache / "images", pixels))
    held_out = splits.held_out_combinations(concepts.values(), seed)
    split = splits.assign(pictures, held_out, seed)
    splits.check(split, held_out)
    alike = {
        frozenset(concepts[key].base for key in (one.concept.key, *one.also))
        for one in pictures
        if one.also
    }
    return Source(
        folders, split, build_hypotheses(concepts, sorted(alike, key=sorted)), seed, pixels
    )


def dictionary(source: Source, made: Mapping[str, tables.Table]) -> Counter[str]:
    """Count the words of a build; words that were possible but not sampled count once."""
    counts = tables.count_words(
        [table for stem, table in made.items() if stem.startswith("caption_")],
        [table for stem, table in made.items() if stem.startswith("entailment_")],
    )
    said = [claim.text for claim in source.hypotheses]
    said += [words for pictures in source.split.values() for one in pictures
             for words in (*one.references, CATEGORY[one.concept.subgroup])]  # fmt: skip
    for word in {word for words in said for word in words.split()}:
        counts[word] = max(1, counts[word])
    return counts


def make_tables(source: Source, size: Size) -> dict[str, tables.Table]:
    """Return file stem → rows, for both tasks and all splits."""
    encoded: dict[str, bytes] = {}

    def encode(picture: Picture) -> bytes:
        if size.webp_quality is None:
            return picture.webp
        if picture.image_id not in encoded:
            drawing = Image.open(io.BytesIO(picture.webp)).convert("RGB")
            encoded[picture.image_id] = encode_webp(drawing, size.webp_quality)
        return encoded[picture.image_id]

    made = {}
    for name in splits.SPLITS:
        pictures = tables.sample(source.split[name], size.captions[name], f"{source.seed}/{name}")
        made[f"caption_{name}"] = tables.caption_table(pictures, name != "train", encode)
        if name == "train":
            made["references_train"] = tables.reference_table(pictures)
    for name in tqdm(splits.SPLITS, desc="entailment", unit="split"):
        rows = balanced_rows(
            source.split[name],
            source.hypotheses,
            size.per_label[name],
            size.entailments[name],
            f"{source.seed}/{name}",
        )
        made[f"entailment_{name}"] = tables.entailment_table(rows, encode)
    return made


def write_build(
    folder: Path,
    source: Source,
    size: Size,
    made: dict[str, tables.Table],
    words: Mapping[str, int],
) -> dict[str, object]:
    """Write a build and, last, its manifest; return the manifest."""
    for stem, table in made.items():
        tables.write_table(folder / f"{stem}.tsv", table)
    tables.write_dictionary(folder / "dict.txt", words)
    written = [f"{stem}.tsv" for stem in made] + ["dict.txt"]
    written += licenses.write_licenses(folder, source.folders)
    rows = {f"{stem}.tsv": len(table) for stem, table in made.items()}
    manifest: dict[str, object] = {
        "seed": source.seed,
        "pixels": source.pixels,
        "webp_quality": "lossless" if size.webp_quality is None else size.webp_quality,
        "words": len(words),
        # Other versions may render or compress slightly differently.
        "tools": {name: metadata.version(name) for name in ("pillow", "resvg-py")},
        "packages": {
            one.name: one.version for one in (NAMES, *(artwork.package for artwork in ARTWORK))
        },
        "limits": {key: value for key, value in asdict(size).items() if key != "webp_quality"},
        "files": {
            name: {
                **({"rows": rows[name]} if name in rows else {}),
                "bytes": (folder / name).stat().st_size,
                "sha256": sha256_of(folder / name),
            }
            for name in written
        },
    }
    content = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_bytes(folder / "manifest.json", content.encode("utf-8"))
    return manifest

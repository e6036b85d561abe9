"""Result files of COCO captions and NoCaps: caption metrics, for NoCaps also by domain."""

from collections.abc import Mapping
from typing import Any

from ofa_exit.evaluation.metrics.captions import score_captions
from ofa_exit.evaluation.metrics.results import (
    ResultPath,
    Scores,
    index_by_id,
    missing_note,
    read_json,
    read_results,
    require_field,
    select_scored,
)

DOMAINS = ("in-domain", "near-domain", "out-domain")


def score_coco(
    results: ResultPath,
    annotations: ResultPath,
    split: str = "test",
    tokenizer: str = "auto",
    allow_missing: bool = False,
    spice_jars: str | None = None,
) -> Scores:
    """Return the caption metrics of ``[{"image_id": 1, "caption": "a cat"}, …]``.

    Args:
        annotations: captions_val2014.json, another file of its form, or a file in Karpathy's, such
            as dataset_coco.json or dataset_rsicd.json, of which ``split`` is scored.
        tokenizer, spice_jars: see `score_captions`.

    Raises ValueError, with file and image, if the files do not fit together.
    """
    references, _ = _read_annotations(annotations, split)
    captions = read_results(results, ("image_id",), "caption", str)
    scored = select_scored(captions, references, results, annotations, "image", allow_missing)
    found = _score(scored, captions, references, tokenizer, spice_jars)
    notes = [*missing_note(len(scored), len(references)), *found.notes]
    return Scores(found.values, len(scored), "images", notes=notes)


def score_nocaps(
    results: ResultPath,
    annotations: ResultPath,
    tokenizer: str = "auto",
    allow_missing: bool = False,
    spice_jars: str | None = None,
) -> Scores:
    """Return the caption metrics of NoCaps, over the entire set and for each domain.

    A domain is a separate set with its own document frequencies for CIDEr. So the entire set's
    CIDEr is not the mean over the domains.

    Args:
        annotations: nocaps_val_4500_captions.json, whose images have a domain.
    """
    references, domains = _read_annotations(annotations, None)
    if not domains:
        raise ValueError(f"{annotations}: its images have no 'domain'. Give NoCaps' annotations")
    captions = read_results(results, ("image_id",), "caption", str)
    scored = select_scored(captions, references, results, annotations, "image", allow_missing)
    entire = _score(scored, captions, references, tokenizer, spice_jars)
    parts: dict[str, dict[str, tuple[float, int]]] = {name: {} for name in entire.values}
    for domain in DOMAINS:
        images = [image for image in scored if domains[image] == domain]
        if not images:
            continue
        found = _score(images, captions, references, tokenizer, spice_jars)
        for name in parts.keys() & found.values.keys():
            parts[name][domain] = (found.values[name], len(images))
    for name, by_domain in parts.items():
        by_domain["entire"] = (entire.values[name], len(scored))
    notes = [*missing_note(len(scored), len(references)), *entire.notes]
    return Scores(entire.values, len(scored), "images", parts, notes)


def _score(
    images: list[str],
    captions: Mapping[str, str],
    references: Mapping[str, list[str]],
    tokenizer: str,
    spice_jars: str | None,
) -> Scores:
    return score_captions(
        [captions[image] for image in images],
        [references[image] for image in images],
        tokenizer,
        spice_jars,
    )


def _read_annotations(
    path: ResultPath, split: str | None
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return image → captions, and image → domain if the file has domains."""
    content = read_json(path)
    images = require_field(content, "images", str(path), list)
    if images and "sentences" in images[0]:
        return _karpathy(images, split, path), {}
    entries = index_by_id(images, ("id",), path, "its images")
    references: dict[str, list[str]] = {image: [] for image in entries}
    for number, caption in enumerate(
        require_field(content, "annotations", str(path), list), start=1
    ):
        where = f"{path}, annotation {number}"
        image = str(require_field(caption, "image_id", where, (str, int)))
        if image not in references:
            raise ValueError(f"{where}: the file has no image {image}")
        references[image].append(require_field(caption, "caption", where, str))
    uncaptioned = [image for image, captions in references.items() if not captions]
    if uncaptioned:
        raise ValueError(
            f"{path}: {len(uncaptioned)} images have no caption, among them {uncaptioned[0]}. The "
            "captions of test splits are not published: score a validation split"
        )
    domains = {}
    if any("domain" in entry for entry in entries.values()):
        for image, entry in entries.items():
            domains[image] = require_field(entry, "domain", f"{path}, image {image}", str)
            if domains[image] not in DOMAINS:
                raise ValueError(
                    f"{path}, image {image}: domain {domains[image]!r} is none of "
                    f"{', '.join(DOMAINS)}"
                )
    return references, domains


def _karpathy(images: list[Any], split: str | None, path: ResultPath) -> dict[str, list[str]]:
    chosen = [entry for entry in images if entry.get("split") == split]
    if not chosen:
        splits = sorted({str(entry.get("split")) for entry in images})
        raise ValueError(f"{path} has no images of the split {split!r}: it has {', '.join(splits)}")
    # Data sets other than COCO number their images themselves.
    key = "cocoid" if "cocoid" in chosen[0] else "imgid"
    return {
        image: _worded_sentences(entry, f"{path}, image {image}")
        for image, entry in index_by_id(chosen, (key,), path, "its images").items()
    }


def _worded_sentences(entry: Mapping[str, Any], where: str) -> list[str]:
    """Return the captions of an image but those without a letter, as ``ofa-exit prepare`` does."""
    sentences = require_field(entry, "sentences", where, list)
    captions = [require_field(sentence, "raw", where, str) for sentence in sentences]
    if not (worded := [caption for caption in captions if any(map(str.isalpha, caption))]):
        raise ValueError(f"{where}: no caption has words. Is this the published file?")
    return worded

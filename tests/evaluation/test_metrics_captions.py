"""Result files of COCO and NoCaps."""

import json

import pytest

from ofa_exit.evaluation.metrics.caption_results import score_coco, score_nocaps
from ofa_exit.evaluation.metrics.captions import score_captions

REFERENCES = {
    1: ["a cat on a mat", "a black cat"],
    2: ["a dog runs in the park", "a dog in a park"],
    3: ["two birds fly", "birds in the sky"],
    4: ["a red bus on a street", "a bus stops"],
}
CAPTIONS = {1: "a cat on a mat", 2: "a dog in the park", 3: "a plane", 4: "a red bus"}
DOMAINS = {1: "in-domain", 2: "out-domain", 3: "in-domain", 4: "near-domain"}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def results(folder, captions=CAPTIONS):
    entries = [{"image_id": image, "caption": text} for image, text in captions.items()]
    return write(folder / "results.json", entries)


def annotations(folder, domains=None, **more):
    images = [{"id": image, "file_name": "x.jpg"} for image in REFERENCES]
    for image in images if domains else []:
        image["domain"] = domains[image["id"]]
    listed = [
        {"id": 10 * image + at, "image_id": image, "caption": text}
        for at in range(2)  # the captions of an image do not stand together in the file
        for image, texts in REFERENCES.items()
        for text in texts[at : at + 1]
    ]
    return write(folder / "annotations.json", {"images": images, "annotations": listed, **more})


def expected(*images):
    return score_captions(
        [CAPTIONS[image] for image in images], [REFERENCES[image] for image in images], "plain"
    ).values


def test_coco_annotations(tmp_path):
    shuffled = {image: CAPTIONS[image] for image in (3, 1, 4, 2)}
    scores = score_coco(results(tmp_path, shuffled), annotations(tmp_path), tokenizer="plain")
    assert scores.values == pytest.approx(expected(1, 2, 3, 4))
    assert scores.values["CIDEr"] > 0
    assert scores.notes == [
        "plain tokenizer",
        "METEOR and SPICE missing: they need the PTB tokenizer",
    ]


def test_karpathys_split(tmp_path):
    splits = {1: "test", 2: "restval", 3: "test", 4: "val"}
    images = [
        {
            "cocoid": image,
            "imgid": 100 + image,
            "split": splits[image],
            "sentences": [{"raw": text, "tokens": []} for text in texts],
        }
        for image, texts in REFERENCES.items()
    ]
    path = write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    given = results(tmp_path, {image: CAPTIONS[image] for image in (1, 3)})
    assert score_coco(given, path, tokenizer="plain").values == pytest.approx(expected(1, 3))
    with pytest.raises(ValueError, match=r"2 of 2 results are for no image .* 1, 3"):
        score_coco(given, path, split="val", tokenizer="plain")
    with pytest.raises(ValueError, match=r"split 'dev': it has restval, test, val"):
        score_coco(given, path, split="dev", tokenizer="plain")


def test_nocaps_domains_are_separate_sets(tmp_path):
    scores = score_nocaps(results(tmp_path), annotations(tmp_path, DOMAINS), "plain")
    assert scores.values == pytest.approx(expected(1, 2, 3, 4))
    for domain, images in (("in-domain", (1, 3)), ("near-domain", (4,)), ("out-domain", (2,))):
        for metric, value in expected(*images).items():
            assert scores.breakdowns[metric][domain] == (pytest.approx(value), len(images))
    assert scores.breakdowns["CIDEr"]["entire"] == (scores.values["CIDEr"], 4)
    domains = [part for name, part in scores.breakdowns["CIDEr"].items() if name != "entire"]
    mean = sum(value * images for value, images in domains) / 4
    assert scores.values["CIDEr"] != pytest.approx(mean)
    with pytest.raises(ValueError, match="have no 'domain'"):
        score_nocaps(results(tmp_path), annotations(tmp_path), "plain")
    with pytest.raises(ValueError, match=r"image 4: domain 'far' is none of in-domain"):
        score_nocaps(results(tmp_path), annotations(tmp_path, {**DOMAINS, 4: "far"}), "plain")


def test_files_that_do_not_fit_raise(tmp_path):
    path = annotations(tmp_path)
    with pytest.raises(ValueError, match=r"no result for 1 of 4 .* image 4"):
        score_coco(results(tmp_path, {image: CAPTIONS[image] for image in (1, 2, 3)}), path)
    with pytest.raises(ValueError, match=r"1 of 5 results are for no image .* 9"):
        score_coco(results(tmp_path, {**CAPTIONS, 9: "a"}), path)
    images = [{"id": image} for image in (1, 5)]
    captions = [{"image_id": 1, "caption": "a cat"}]
    write(path, {"images": images, "annotations": captions})
    with pytest.raises(ValueError, match=r"1 images have no caption, among them 5"):
        score_coco(results(tmp_path), path)
    write(path, {"images": images[:1], "annotations": [{"image_id": 2, "caption": "a"}]})
    with pytest.raises(ValueError, match="annotation 1: the file has no image 2"):
        score_coco(results(tmp_path), path)

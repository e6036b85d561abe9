"""The ready-made build under examples/emoji."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from helpers.paths import ROOT

from examples.emoji.builder.baseline import hypothesis_only, ngrams
from examples.emoji.builder.check import check_build, read_rows
from examples.emoji.builder.splits import SPLITS

FOLDER = ROOT / "examples" / "emoji"
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def rows() -> dict[str, int]:
    return check_build(FOLDER)


def test_it_passes_its_own_check_and_is_small(rows) -> None:
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 12 * MEGABYTE
    for task in ("caption", "entailment"):
        assert rows[f"{task}_train.tsv"] >= 2000
        assert all(200 <= rows[f"{task}_{split}.tsv"] <= 400 for split in SPLITS[1:])


def test_licences_are_part_of_it() -> None:
    notice = (FOLDER / "NOTICE.txt").read_text()
    for word in ("noto-emoji", "CC-BY-4.0", "Apache-2.0", "Microsoft", "emojibase", "twemoji"):
        assert word in notice
    names = [line.split()[-1] for line in notice.splitlines() if "text in LICENSES/" in line]
    assert len(names) == 6
    for name in names:
        assert len((FOLDER / name).read_text()) > 900


def test_captions_are_plain_words_that_name_the_tone() -> None:
    for split in SPLITS:
        for _, image, captions, objects, _ in read_rows(FOLDER / f"caption_{split}.tsv"):
            references = captions.split("&&")
            assert len(set(references)) == len(references)
            assert split != "train" or len(references) == 1
            assert objects
            toned = any(f"-1f3f{tone}" in image for tone in "bcdef")
            for reference in references:
                assert all(word.isalnum() and word == word.lower() for word in reference.split())
                assert not toned or "skin tone" in reference


def test_each_text_leaves_its_label_open() -> None:
    for split in SPLITS:
        counts: dict[str, Counter] = defaultdict(Counter)
        for row in read_rows(FOLDER / f"entailment_{split}.tsv"):
            counts[row[3]][row[5]] += 1
        assert all(len(set(c.values())) == 1 and len(c) >= 2 for c in counts.values())


def test_held_out_combinations_are_not_even_talked_about_in_training() -> None:
    broad = {f"{noun} with" for noun in ("person", "man", "woman", "hand")}
    told = {
        row[3]
        for row in read_rows(FOLDER / "entailment_test_combinations.tsv")
        if row[5] == "entailment" and "skin tone" in row[3]
    }
    named = {text for text in told if " ".join(text.split()[:2]) not in broad}
    assert len(named) > 20
    assert not named & {row[3] for row in read_rows(FOLDER / "entailment_train.tsv")}


def test_the_text_alone_is_near_chance() -> None:
    scores = hypothesis_only(FOLDER, epochs=6)
    for split in SPLITS[1:]:
        assert scores[split].accuracy <= 0.45, split
        assert scores[split].majority <= 0.45, split


def test_the_baseline_can_learn_when_texts_give_labels_away(tmp_path) -> None:
    words = {"entailment": "alpha beta", "neutral": "gamma delta", "contradiction": "eta theta"}
    lines = [
        f"{label}{n}\timage\tpixels\t{text} {n}\tpremise\t{label}\n"
        for n in range(40)
        for label, text in words.items()
    ]
    for split in SPLITS:
        (tmp_path / f"entailment_{split}.tsv").write_text("".join(lines))
    assert all(score.accuracy == 1.0 for score in hypothesis_only(tmp_path, epochs=6).values())


def test_ngrams() -> None:
    assert ngrams("a b") == ["<", "a", "b", ">", "< a", "a b", "b >", "< a b", "a b >", "= a b"]

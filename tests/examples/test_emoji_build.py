"""The whole build on a tiny stand-in for the packages: splits, labels, balance, determinism."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from helpers.emoji_fixture import write_packages

from examples.emoji.builder import build, check, render, splits
from examples.emoji.builder.__main__ import main
from examples.emoji.builder.concepts import load_concepts
from examples.emoji.builder.entailment import TWO_WAY_SHARE, balanced_rows
from examples.emoji.builder.errors import EmojiDataError
from examples.emoji.builder.hypotheses import LABELS
from examples.emoji.builder.packages import NAMES
from examples.emoji.builder.pictures import Picture

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def made(packages, tmp_path_factory) -> Path:
    """A full and a compact build of the stand-in, sixteen pixels wide."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "VALID_SHARE", 0.2)
        patch.setattr(splits, "HELD_OUT_SHARE", 0.25)
        assert run_build(packages, folder) == 0
    return folder


def run_build(packages: Path, folder: Path) -> int:
    arguments = ["--out", str(folder / "full"), "--compact", str(folder / "compact")]
    return main(["build", *arguments, "--packages", str(packages), "--size", "16"])


@pytest.fixture(scope="module")
def source(packages, made) -> build.Source:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "VALID_SHARE", 0.2)
        patch.setattr(splits, "HELD_OUT_SHARE", 0.25)
        return build.prepare(made / "full" / "cache", packages, 16, seed=1)


def checksums(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["files"]


def test_the_same_seed_gives_the_same_bytes_and_renders_once(packages, made, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "VALID_SHARE", 0.2)
    monkeypatch.setattr(splits, "HELD_OUT_SHARE", 0.25)
    shutil.copytree(made / "full" / "cache", tmp_path / "full" / "cache")
    monkeypatch.setattr(render, "rasterise", lambda *_: pytest.fail("rendered again"))
    assert run_build(packages, tmp_path) == 0
    for name in ("full", "compact"):
        assert checksums(tmp_path / name) == checksums(made / name)


def test_both_builds_have_every_file_and_one_dictionary(made) -> None:
    for name in ("full", "compact"):
        rows = check.check_build(made / name)
        assert len(rows) == 8
        assert all(rows.values())
        assert (made / name / "NOTICE.txt").is_file()
        assert {one.name for one in (made / name / "LICENSES").iterdir()} == {
            "Apache-2.0.txt", "CC-BY-4.0.txt", "MIT-fluent.txt", "MIT-emojibase.txt",
        }  # fmt: skip
    assert (made / "full/dict.txt").read_bytes() == (made / "compact/dict.txt").read_bytes()
    words = [line.split()[0] for line in (made / "full/dict.txt").open()]
    assert words == sorted(set(words))
    assert {"?", '"', "&&", "yes", "maybe", "no", "text1", "wave"} <= set(words)


def test_splits(source, packages) -> None:
    concepts = load_concepts(packages / NAMES.folder)
    held = splits.held_out_combinations(concepts.values(), 1)
    variants = [key for key, concept in concepts.items() if concept.tones]
    assert held == splits.held_out_combinations(concepts.values(), 1)
    assert 0 < len(held) <= len(variants) / 8
    split = source.split
    assert all(split.values())
    combinations = {one.concept.key for one in split["test_combinations"]}
    assert all(concepts[key].tones for key in combinations)
    for name in ("train", "valid", "test_artist"):
        assert not combinations & {one.concept.key for one in split[name]}
        assert {one.artist == "twemoji" for one in split[name]} == {name == "test_artist"}
    shown = {(one.family, one.concept.role) for one in split["train"]}
    assert not shown & {(one.family, one.concept.role) for one in split["valid"]}
    assert {one.concept.key for one in split["valid"]} <= {
        one.concept.key for one in split["train"]
    }


def test_equal_drawings_are_one_picture_with_all_names(source) -> None:
    everything = [one for pictures in source.split.values() for one in pictures]
    both = [one for one in everything if one.also]
    assert [(one.artist, one.concept.name) for one in both] == [("noto-v1", "person running")]
    assert both[0].references == ("person running", "man running")
    assert both[0].gender == ""
    assert not any(
        one.artist == "noto-v1" and one.concept.name == "man running" for one in everything
    )


def label(source: build.Source, text: str, artist: str, name: str) -> str | None:
    claim = {one.text: one for one in source.hypotheses}[text]
    everything = [one for pictures in source.split.values() for one in pictures]
    (picture,) = [one for one in everything if (one.artist, one.concept.name) == (artist, name)]
    return claim.label(picture)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("dog", "dog", "entailment"),
        ("dog", "fox", "contradiction"),
        ("dog", "guide dog", None),  # a guide dog is a dog, though another emoji
        ("guide dog", "dog", None),
        ("dog", "duck", None),  # another subgroup: too easy
        ("mammal", "fox", "entailment"),
        ("mammal", "duck", "contradiction"),
        ("woman scientist", "woman scientist", "entailment"),
        ("woman scientist", "scientist", "neutral"),
        ("woman scientist", "man scientist", "contradiction"),
        ("woman scientist", "woman artist", "contradiction"),
        ("scientist", "woman scientist", "entailment"),
        ("woman", "woman running", "entailment"),
        ("woman", "person running", "neutral"),
        ("waving hand with dark skin tone", "waving hand", "neutral"),
        ("waving hand with dark skin tone", "raised hand", "contradiction"),
        ("hand", "waving hand", "entailment"),
        ("hand with dark skin tone", "thumbs up", "neutral"),
    ],
)
def test_labels(source, text: str, name: str, expected: str | None) -> None:
    assert label(source, text, "twemoji", name) == expected


def test_tones_decide(source) -> None:
    claim = {one.text: one for one in source.hypotheses}["waving hand with dark skin tone"]
    tones = {
        one.concept.tones: claim.label(one)
        for one in source.split["test_artist"]
        if one.concept.base == "1F44B"
    }
    expected = {(): "neutral", (5,): "entailment"}
    assert tones == {tone: expected.get(tone, "contradiction") for tone in tones}
    assert len(tones) >= 4


@pytest.mark.parametrize("artist", ["noto-v1", "noto"])
def test_old_neutral_drawings_have_no_gender_hypotheses(source, artist: str) -> None:
    expected = None if artist == "noto-v1" else "neutral"
    assert label(source, "woman scientist", artist, "scientist") == expected


def test_labels_are_balanced_for_every_hypothesis(source) -> None:
    for name, pictures in source.split.items():
        rows = balanced_rows(pictures, source.hypotheses, 4, 300, f"7/{name}")
        assert rows == balanced_rows(pictures, source.hypotheses, 4, 300, f"7/{name}")
        assert len(rows) <= 300
        counts: dict[str, Counter] = defaultdict(Counter)
        for row in rows:
            counts[row.hypothesis][row.label] += 1
        assert all(len(set(found.values())) == 1 for found in counts.values())
        assert {frozenset(found) for found in counts.values()} <= {
            frozenset(LABELS),
            frozenset({"entailment", "contradiction"}),
        }
        two_way = sum(sum(found.values()) for found in counts.values() if len(found) == 2)
        assert two_way <= TWO_WAY_SHARE * len(rows) + 1


def tampered(made: Path, folder: Path, name: str, change) -> Path:
    """A copy of the compact build with one file changed and its checksum brought up to date."""
    shutil.copytree(made / "compact", folder)
    path = folder / name
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name].update(sha256=check.sha256_of(path), rows=len(lines))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def replace_field(number: int, content: str):
    def change(lines: list[str]) -> None:
        fields = lines[0].rstrip("\n").split("\t")
        fields[number] = content
        lines[0] = "\t".join(fields) + "\n"

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("caption_valid.tsv", replace_field(4, "bm8gaW1hZ2U="), "valid.tsv:1: the image"),
        ("caption_valid.tsv", replace_field(2, "dog&& &&cat"), "valid.tsv:1: an empty"),
        ("caption_valid.tsv", replace_field(2, "zyzzyva"), "not in dict.txt"),
        ("caption_valid.tsv", lambda lines: lines.append(lines[0]), "occurs twice"),
        ("caption_valid.tsv", replace_field(4, "a\tb"), "6 fields, expected"),
        ("caption_valid.tsv", replace_field(1, "twemoji/1f415"), "valid holds twemoji"),
        ("entailment_valid.tsv", replace_field(5, "perhaps"), "unknown label 'perhaps'"),
    ],
)
def test_check_finds_what_is_wrong(made, tmp_path, name, change, message) -> None:
    folder = tampered(made, tmp_path / "copy", name, change)
    with pytest.raises(EmojiDataError, match=message):
        check.check_build(folder)


def test_check_notices_changed_and_missing_files(made, tmp_path, capsys) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made / "compact", folder)
    with (folder / "caption_valid.tsv").open("a") as stream:
        stream.write("\n")
    assert main(["check", str(folder)]) == 1
    assert "was changed. Build again." in capsys.readouterr().err
    (folder / "caption_valid.tsv").unlink()
    assert main(["check", str(folder)]) == 1


def test_leaks_are_rejected(source) -> None:
    split = {name: list(pictures) for name, pictures in source.split.items()}
    held = frozenset(one.concept.key for one in split["test_combinations"])
    splits.check(split, held)
    for victim, guest in (
        ("train", "test_combinations"),
        ("train", "test_artist"),
        ("train", "valid"),
        ("test_combinations", "train"),
    ):
        broken: dict[str, list[Picture]] = {**split, victim: [*split[victim], split[guest][0]]}
        with pytest.raises(EmojiDataError):
            splits.check(broken, held)


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ({"train": {"noto/1f415"}, "valid": {"noto-v1/1f415"}}, "1f415 by noto is in valid"),
        ({"train": {"twemoji/1f415"}}, "train holds twemoji"),
        ({"test_artist": {"noto/1f415"}}, "test_artist holds noto"),
        (
            {"test_combinations": {"noto/1f44b-1f3fb"}, "train": {"fluent/1f44b-1f3fb"}},
            "held-out combinations in train",
        ),
    ],
)
def test_leaks_in_written_files_are_rejected(shown: dict, message: str) -> None:
    empty: dict[str, set[str]] = {name: set() for name in splits.SPLITS}
    check.check_leaks(empty)
    with pytest.raises(EmojiDataError, match=message):
        check.check_leaks({**empty, **shown})


def test_invalid_commands_are_rejected(tmp_path, capsys) -> None:
    assert main(["build", "--size", "2", "--out", str(tmp_path)]) == 1
    assert "--size 2" in capsys.readouterr().err
    assert main(["build", "--packages", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "npm pack" in capsys.readouterr().err
    assert main(["baseline", str(tmp_path)]) == 1
    assert "entailment_train.tsv is missing" in capsys.readouterr().err

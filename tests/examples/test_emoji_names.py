"""Names, synonyms, genders and tones of the emoji data."""

from __future__ import annotations

import pytest
from helpers.emoji_fixture import write_packages

from examples.emoji.builder.concepts import load_concepts, role_of, tone_words
from examples.emoji.builder.packages import NAMES
from examples.emoji.builder.words import plain_words, references_of, shortcode_words

VOCABULARY = {"bullet", "train", "thumbs", "woman", "ok", "hand", "sunflower", "sun", "flower"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Waving hand: medium-light skin tone", "waving hand medium light skin tone"),
        ("one o’clock", "one oclock"),
        ("flag: Côte d’Ivoire", "flag cote divoire"),
        ("keycap: #", "keycap number sign"),
        ("flag: Trinidad & Tobago", "flag trinidad and tobago"),
    ],
)
def test_plain_words(text: str, words: str) -> None:
    assert plain_words(text) == words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("waving_hand", "waving hand"),
        ("bullettrain", "bullet train"),
        ("sunflower", "sunflower"),
        ("female-scientist", "woman scientist"),
        ("ok_hand", "ok hand"),
        ("wave_tone3", None),
        ("dog2", None),
        ("+1", None),
        ("point_up_2", None),
        ("u6e80", None),
        ("flag_de", None),
        ("family_mwgb", None),
        ("1234", None),
        ("shit", None),
    ],
)
def test_shortcodes_that_are_no_words_are_dropped(code: str, words: str | None) -> None:
    assert shortcode_words(code, VOCABULARY) == words


def test_references_start_with_the_name_and_rank_by_use() -> None:
    codes = {"a": ["pile_of_poo", "poop"], "b": ["poop"], "c": ["poop", "hankey"], "d": ["stool"]}
    found = references_of("pile of poo", codes, {"of"}, is_flag=False)
    assert found == ("pile of poo", "poop", "stool")
    flag = references_of("flag norway", {"a": ["flag_no", "norway"]}, {"no"}, is_flag=True)
    assert flag == ("flag norway", "norway")


def test_concepts(tmp_path) -> None:
    concepts = load_concepts(write_packages(tmp_path) / NAMES.folder)
    wave = concepts["1F44B-1F3FD"]
    assert wave.name == "waving hand medium skin tone"
    assert wave.references == (wave.name, "wave medium skin tone")
    assert (wave.base, wave.tones, wave.gender) == ("1F44B", (3,), "")
    assert concepts["1F415"].references == ("dog",)
    roles = {
        (concept.gender, concept.role) for concept in concepts.values() if "running" in concept.name
    }
    assert roles == {("open", "1F3C3"), ("man", "1F3C3"), ("woman", "1F3C3")}
    assert concepts["1F468-200D-1F52C"].role == "1F9D1-200D-1F52C"
    assert concepts["1F469-1F3FF-200D-1F52C"].gender == "woman"


def test_role_and_tone_words() -> None:
    assert role_of("1F9D1-200D-1F52C") == role_of("1F469-200D-1F52C")
    assert role_of("1F3C3-200D-27A1") != role_of("1F3C3-200D-2640")
    assert tone_words((1, 4)) == "light skin tone medium dark skin tone"

"""Plain words for Unicode's emoji subgroups: premises and general hypotheses."""

from __future__ import annotations

# Subgroup → noun phrase that is true of each of its pictures.
CATEGORY = {
    "face-smiling": "yellow face", "face-affection": "yellow face", "face-tongue": "yellow face",
    "face-hand": "yellow face", "face-neutral-skeptical": "yellow face",
    "face-sleepy": "yellow face",
    "face-unwell": "face", "face-hat": "yellow face", "face-glasses": "yellow face",
    "face-concerned": "face", "face-negative": "face", "face-costume": "creature",
    "cat-face": "cat face", "monkey-face": "monkey", "heart": "heart", "emotion": "comic symbol",
    "hand-fingers-open": "hand", "hand-fingers-partial": "hand", "hand-single-finger": "hand",
    "hand-fingers-closed": "hand", "hands": "pair of hands", "hand-prop": "hand",
    "body-parts": "part of a body", "person": "person", "person-gesture": "person",
    "person-role": "person", "person-fantasy": "fantasy figure", "person-activity": "person",
    "person-sport": "person doing sport", "person-resting": "person resting",
    "family": "group of people", "person-symbol": "symbol of people",
    "skin-tone": "skin tone sample", "hair-style": "hair style",
    "animal-mammal": "mammal", "animal-bird": "bird", "animal-amphibian": "amphibian",
    "animal-reptile": "reptile", "animal-marine": "sea animal",
    "animal-bug": "small crawling animal",
    "plant-flower": "flower", "plant-other": "plant", "food-fruit": "fruit",
    "food-vegetable": "vegetable", "food-prepared": "prepared food", "food-asian": "asian food",
    "food-sweet": "sweet food", "drink": "drink", "dishware": "dishware",
    "place-map": "map or globe",
    "place-geographic": "landscape", "place-building": "building",
    "place-religious": "religious building", "place-other": "place",
    "transport-ground": "land transport", "transport-water": "water transport",
    "transport-air": "air transport", "hotel": "hotel object", "time": "time keeper",
    "sky-weather": "sky or weather", "event": "festive object", "award-medal": "award",
    "sport": "sports object", "game": "game or toy", "arts-crafts": "arts and crafts object",
    "clothing": "clothing", "sound": "sound object", "music": "music object",
    "musical-instrument": "musical instrument", "phone": "telephone", "computer": "computer object",
    "light-video": "light or video object", "book-paper": "book or paper", "money": "money",
    "mail": "mail", "writing": "writing tool", "office": "office object", "lock": "lock or key",
    "tool": "tool", "science": "science object", "medical": "medical object",
    "household": "household object", "other-object": "object", "transport-sign": "public sign",
    "warning": "warning sign", "arrow": "arrow", "religion": "religious symbol",
    "zodiac": "zodiac sign", "av-symbol": "media button", "gender": "gender symbol",
    "math": "math sign", "punctuation": "punctuation mark", "currency": "currency sign",
    "other-symbol": "symbol", "keycap": "keycap", "alphanum": "letter or word button",
    "geometric": "geometric shape", "flag": "flag", "country-flag": "country flag",
    "subdivision-flag": "country flag", "letter": "letter",
}  # fmt: skip

# Categories clear enough for a question: the answer is yes for all of their pictures, and no for
# pictures of other categories in the same group.
ASKED = frozenset({
    "cat face", "heart", "hand", "mammal", "bird", "reptile", "flower", "fruit", "vegetable",
    "drink", "building", "religious building", "land transport", "water transport", "air transport",
    "musical instrument", "clothing", "zodiac sign", "arrow", "media button", "keycap",
    "geometric shape", "group of people", "person doing sport", "fantasy figure", "yellow face",
})  # fmt: skip

# Faces of these subgroups differ only by subgroup: "grinning face" is true of most smiling faces.
FACES = frozenset(name for name in CATEGORY if name.startswith("face-") and name != "face-costume")

SINGLE_PERSON = frozenset({
    "person", "person-gesture", "person-role", "person-activity", "person-sport", "person-resting",
})  # fmt: skip
HANDS = frozenset({
    "hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed",
})  # fmt: skip

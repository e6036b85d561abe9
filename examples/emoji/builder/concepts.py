"""Meaning of each emoji: names, group, gender, skin tones, and the role shared with others."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .artwork import normal_key
from .packages import read_json
from .words import plain_words, references_of

TONES = ("light", "medium light", "medium", "medium dark", "dark")
SHORTCODE_SETS = ("emojibase", "github", "iamcal", "joypixels")

# Gendered code points without a gender sign → the neutral one of the same role.
NEUTRAL = {
    "1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2", "1F474": "1F9D3",
    "1F475": "1F9D3", "1F934": "1FAC5", "1F478": "1FAC5", "1F930": "1FAC4", "1FAC3": "1FAC4",
    "1F57A": "1F483",
}  # fmt: skip
MAN_POINTS = frozenset({"1F468", "1F466", "1F474", "1F934", "1FAC3", "1F57A", "2642"})
WOMAN_POINTS = frozenset({"1F469", "1F467", "1F475", "1F478", "1F930", "1F483", "2640"})


@dataclass(frozen=True)
class Concept:
    """One emoji. A skin-tone variant has `tones` and shares `base` with its untoned emoji.

    `role` joins a man's, a woman's and the neutral emoji of one thing; `gender` is "man", "woman",
    "open" (the neutral emoji of a role with gendered ones) or "" (no gender).
    `tonable` is true of every emoji whose base has skin-tone variants.
    """

    key: str
    name: str
    base: str
    base_name: str
    role: str
    gender: str
    tones: tuple[int, ...]
    tonable: bool
    group: str
    subgroup: str
    references: tuple[str, ...]


def tone_words(tones: tuple[int, ...]) -> str:
    """Name skin tones: `(2,)` → "medium light skin tone"; two tones follow each other."""
    return " ".join(f"{TONES[tone - 1]} skin tone" for tone in tones)


def role_of(base: str) -> str:
    """Return the key of the role: neutral code points, without gender signs."""
    points = [NEUTRAL.get(point, point) for point in base.split("-")]
    return re.sub(r"-200D-264[02]", "", "-".join(points))


def _gender_of(base: str, subgroup: str) -> str:
    points = set(base.split("-"))
    if subgroup in ("family", "person-symbol") or len(points & {"1F468", "1F469"}) > 1:
        return ""
    if points & MAN_POINTS:
        return "man"
    return "woman" if points & WOMAN_POINTS else ""


def load_concepts(folder: Path) -> dict[str, Concept]:
    """Load all emoji of an unpacked emojibase-data package, by key, in Unicode's order."""
    entries = read_json(folder / "en" / "data.json")
    titles = read_json(folder / "meta" / "groups.json")
    shortcodes = {
        name: {
            normal_key(code): [names] if isinstance(names, str) else names
            for code, names in read_json(folder / "en" / "shortcodes" / f"{name}.json").items()
        }
        for name in SHORTCODE_SETS
    }
    vocabulary = {word for entry in entries for word in plain_words(entry["label"]).split()}
    genders: dict[str, set[str]] = defaultdict(set)
    concepts: dict[str, Concept] = {}
    for entry in sorted(entries, key=lambda one: one.get("order", 0)):
        base = normal_key(entry["hexcode"])
        # Regional indicator letters are the only entries without a group.
        group = titles["groups"][str(entry["group"])] if "group" in entry else "symbols"
        subgroup = titles["subgroups"][str(entry["subgroup"])] if "group" in entry else "letter"
        codes = {name: codes.get(base, []) for name, codes in shortcodes.items()}
        base_name = plain_words(entry["label"])
        references = references_of(base_name, codes, vocabulary, subgroup.endswith("-flag"))
        gender, role = _gender_of(base, subgroup), role_of(base)
        genders[role].add(gender)
        for variant in (entry, *entry.get("skins", [])):
            name, tones = plain_words(variant["label"]), _tones_of(variant)
            spoken = tone_words(tones)
            concepts[normal_key(variant["hexcode"])] = Concept(
                key=normal_key(variant["hexcode"]),
                name=name,
                base=base,
                base_name=base_name,
                role=role,
                gender=gender,
                tones=tones,
                tonable="skins" in entry,
                group=group,
                subgroup=subgroup,
                references=(name, *(f"{other} {spoken}" for other in references[1:]))
                if tones
                else references,
            )
    return {
        key: _with_open_gender(concept) if len(genders[concept.role]) > 1 else concept
        for key, concept in concepts.items()
    }


def _tones_of(variant: dict[str, Any]) -> tuple[int, ...]:
    tone = variant.get("tone")
    if tone is None:
        return ()
    return (tone,) if isinstance(tone, int) else tuple(tone)


def _with_open_gender(concept: Concept) -> Concept:
    return concept if concept.gender else replace(concept, gender="open")

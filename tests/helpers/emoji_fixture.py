"""A tiny stand-in for the npm packages of the emoji data, written to a folder."""

from __future__ import annotations

import json
from pathlib import Path

from examples.emoji.builder.packages import ARTWORK, NAMES

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
# label, code points, subgroup number; the group is people (1) below 30, else animals (3).
PEOPLE = [
    ("scientist", "1F9D1-200D-1F52C", 25), ("man scientist", "1F468-200D-1F52C", 25),
    ("woman scientist", "1F469-200D-1F52C", 25), ("artist", "1F9D1-200D-1F3A8", 25),
    ("man artist", "1F468-200D-1F3A8", 25), ("woman artist", "1F469-200D-1F3A8", 25),
    ("person running", "1F3C3", 27), ("man running", "1F3C3-200D-2642-FE0F", 27),
    ("woman running", "1F3C3-200D-2640-FE0F", 27), ("person climbing", "1F9D7", 27),
    ("man climbing", "1F9D7-200D-2642-FE0F", 27), ("woman climbing", "1F9D7-200D-2640-FE0F", 27),
    ("waving hand", "1F44B", 16), ("raised hand", "270B", 16), ("raised fist", "270A", 19),
    ("thumbs up", "1F44D", 19),
]  # fmt: skip
ANIMALS = [
    ("dog", "1F415", 34), ("guide dog", "1F9AE", 34), ("fox", "1F98A", 34), ("wolf", "1F43A", 34),
    ("cow", "1F404", 34), ("gorilla", "1F98D", 34), ("penguin", "1F427", 35), ("duck", "1F986", 35),
]  # fmt: skip
GROUPS = {
    "groups": {"1": "people-body", "3": "animals-nature"},
    "subgroups": {
        "16": "hand-fingers-open", "19": "hand-fingers-closed", "25": "person-role",
        "27": "person-activity", "34": "animal-mammal", "35": "animal-bird",
    },
}  # fmt: skip


def toned(hexcode: str, tone: int) -> str:
    """Code points of the skin-tone variant: the modifier follows the first point."""
    first, *rest = hexcode.split("-")
    return "-".join([first, f"1F3F{'BCDEF'[tone - 1]}", *rest])


def entries() -> list[dict]:
    """emojibase's data.json for the emoji above."""
    found: list[dict] = []
    for label, hexcode, subgroup in PEOPLE + ANIMALS:
        entry = {"label": label, "hexcode": hexcode, "order": len(found), "subgroup": subgroup}
        entry["group"] = 1 if subgroup < 30 else 3
        if subgroup < 30:
            entry["skins"] = [
                {
                    "label": f"{label}: {TONES[tone - 1]} skin tone",
                    "hexcode": toned(hexcode, tone),
                    "tone": tone,
                }
                for tone in range(1, 6)
            ]
        found.append(entry)
    return found


def drawing(artist: int, number: int) -> str:
    """An SVG body that no other artist or number has."""
    return (
        f'<rect x="{number % 12}" y="{artist}" width="6" height="{3 + number // 12}" '
        f'fill="rgb({artist * 50},{number},{255 - number})"/>'
    )


def write_packages(folder: Path) -> Path:
    """Write emojibase-data and the five artwork packages; returns `folder`.

    noto-v1 and fluent have no code points, as in life; noto-v1 draws man and person running alike.
    """
    data = entries()
    keys = [one["hexcode"] for entry in data for one in (entry, *entry.get("skins", []))]
    labels = [one["label"] for entry in data for one in (entry, *entry.get("skins", []))]
    names = [label.replace(": ", "-").replace(" ", "-") for label in labels]

    def put(package: str, path: str, content: object) -> None:
        target = folder / package / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content))

    put(NAMES.folder, "package.json", {"version": NAMES.version})
    put(NAMES.folder, "LICENSE", "MIT License\n")
    put(NAMES.folder, "en/data.json", data)
    put(NAMES.folder, "meta/groups.json", GROUPS)
    for codes in ("emojibase", "github", "iamcal", "joypixels"):
        content = {"1F44B": ["wave", "waving_hand"], "1F44B-1F3FB": "wave_tone1", "1F415": "dog2"}
        put(NAMES.folder, f"en/shortcodes/{codes}.json", content)
    for artist, one in enumerate(ARTWORK):
        icons = {name: {"body": drawing(artist, number)} for number, name in enumerate(names)}
        if one.name == "noto-v1":
            icons["man-running"] = icons["person-running"]
        chars = {} if one.name in ("noto-v1", "fluent") else dict(zip(keys, names, strict=True))
        put(one.package.folder, "package.json", {"version": one.package.version})
        put(one.package.folder, "chars.json", chars)
        put(one.package.folder, "icons.json", {"icons": icons, "width": 20, "height": 20})
    return folder

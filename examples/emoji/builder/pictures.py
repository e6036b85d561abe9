"""The rendered pictures of all artwork sets, without duplicates, and their concepts."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .artwork import chars_of, pictures_by_name, svg_of
from .concepts import Concept
from .packages import ArtworkSet, read_json
from .render import RenderCache


@dataclass(frozen=True)
class Picture:
    """One rendered drawing of `artist` (a set) and its `family`.

    `gender` is the concept's, or "" if the drawing may not show it. `also` are the keys of other
    emoji for which the artist published the same pixels; their references count too.
    """

    artist: str
    family: str
    concept: Concept
    gender: str
    also: tuple[str, ...]
    references: tuple[str, ...]
    webp: bytes

    @property
    def image_id(self) -> str:
        return f"{self.artist}/{self.concept.key.lower()}"


def picture_names(
    sets: Sequence[ArtworkSet], folders: Mapping[str, Path], keys: set[str]
) -> dict[str, dict[str, str]]:
    """Return artist → emoji key → picture name, for the wanted keys that the artist drew.

    A set without code points takes those of its family, or else the names that the other sets use.
    """
    chars = {one.name: chars_of(folders[one.name]) for one in sets}
    name_to_key = {name: key for codes in chars.values() for key, name in codes.items()}
    found: dict[str, dict[str, str]] = {}
    for one in sets:
        icons = read_json(folders[one.name] / "icons.json")
        drawn = {*icons["icons"], *icons.get("aliases", {})}
        named = chars[one.name] or pictures_by_name(icons, name_to_key)
        if not chars[one.name] and one.family == "fluent":
            named = chars["fluent-flat"]
        found[one.name] = {k: n for k, n in named.items() if k in keys and n in drawn}
    return found


def render_all(
    sets: Sequence[ArtworkSet],
    folders: Mapping[str, Path],
    concepts: Mapping[str, Concept],
    cache: RenderCache,
) -> list[Picture]:
    """Render every set's pictures of the concepts, in Unicode's order, one per distinct drawing."""
    names = picture_names(sets, folders, set(concepts))
    pictures: list[Picture] = []
    with tqdm(total=sum(map(len, names.values())), desc="render", unit="picture") as bar:
        for one in sets:
            icons = read_json(folders[one.name] / "icons.json")
            drawings: dict[str, bytes] = {}
            for key in concepts:
                if key in names[one.name]:
                    name = names[one.name][key]
                    drawings[key] = cache.get(one.package.folder, name, svg_of(icons, name))
                    bar.update()
            pictures.extend(distinct(one, drawings, concepts))
    return pictures


def distinct(
    one: ArtworkSet, drawings: Mapping[str, bytes], concepts: Mapping[str, Concept]
) -> list[Picture]:
    """Return one Picture per distinct rendering of an artist; it belongs to the first emoji.

    Older sets draw some emoji the same, for instance "person running" and "man running". The
    picture has the names of all of them, and a gender only if all agree on it.
    """
    same: dict[str, list[str]] = defaultdict(list)
    for key, webp in drawings.items():
        same[hashlib.sha256(webp).hexdigest()].append(key)
    pictures = []
    for first, *others in same.values():
        concept = concepts[first]
        references = dict.fromkeys(
            reference for key in (first, *others) for reference in concepts[key].references
        )
        genders = {concepts[key].gender for key in (first, *others)}
        # Noto's first edition predates neutral drawings: its "person" is a man or a woman.
        unsure = len(genders) > 1 or (one.name == "noto-v1" and genders == {"open"})
        pictures.append(
            Picture(
                artist=one.name,
                family=one.family,
                concept=concept,
                gender="" if unsure else concept.gender,
                also=tuple(others),
                references=tuple(references),
                webp=drawings[first],
            )
        )
    return pictures

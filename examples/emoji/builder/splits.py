"""Assignment of the pictures to splits."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .concepts import Concept
from .errors import EmojiDataError
from .pictures import Picture

SPLITS = ("train", "valid", "test_artist", "test_combinations")
TEST_ARTIST = "twemoji"
HELD_OUT_SHARE = 1 / 8
VALID_SHARE = 0.06


def held_out_combinations(concepts: Iterable[Concept], seed: int) -> frozenset[str]:
    """Return the keys of an eighth of the skin-tone variants: two tones (or pairs) per role.

    Variants are held out by role (man, woman and neutral emoji of a thing together). Hypotheses
    about the held-out pictures can then be wrong in gender or in tone. Three fifths of a role's
    tones remain for training.
    """
    by_size: dict[int, dict[str, list[Concept]]] = defaultdict(lambda: defaultdict(list))
    for concept in concepts:
        if concept.tones:
            by_size[1 if len(concept.tones) == 1 else 2][concept.role].append(concept)
    rng = random.Random(f"{seed}/combinations")
    held: set[str] = set()
    for _, roles in sorted(by_size.items()):
        wanted = HELD_OUT_SHARE * sum(map(len, roles.values()))
        taken = 0
        for turn, role in enumerate(rng.sample(sorted(roles), len(roles))):
            tones = sorted({one.tones for one in roles[role]})
            # Rotating the start spreads the held-out tones evenly over all tones.
            start, step = turn % len(tones), 1 + (turn // len(tones)) % max(1, len(tones) - 1)
            chosen = {tones[start], tones[(start + step) % len(tones)]}
            variants = [one.key for one in roles[role] if one.tones in chosen]
            if taken + len(variants) > wanted:
                continue
            held.update(variants)
            taken += len(variants)
    return frozenset(held)


def assign(
    pictures: Sequence[Picture], held_out: frozenset[str], seed: int
) -> dict[str, list[Picture]]:
    """Return split → pictures.

    test_combinations: held-out variants by the training artists. test_artist: the held-out artist,
    for emoji that some training picture shows. valid: one family's drawings of some roles, of which
    the other family's are trained on. A drawing that also stands for a held-out variant is left
    out.
    """
    split: dict[str, list[Picture]] = {name: [] for name in SPLITS}
    known: list[Picture] = []
    for picture in pictures:
        keys = {picture.concept.key, *picture.also}
        if picture.artist == TEST_ARTIST:
            if not keys & held_out:
                split["test_artist"].append(picture)
        elif keys <= held_out:
            split["test_combinations"].append(picture)
        elif not keys & held_out:
            known.append(picture)
    validating = _validation_roles(known, seed)
    for picture in known:
        chosen = validating.get(picture.concept.role) == picture.family
        split["valid" if chosen else "train"].append(picture)
    seen = {key for picture in split["train"] for key in (picture.concept.key, *picture.also)}
    for name in ("valid", "test_artist"):
        split[name] = [one for one in split[name] if one.concept.key in seen]
    return split


def _validation_roles(pictures: Sequence[Picture], seed: int) -> dict[str, str]:
    """Return role → family whose drawings are held out for valid, for roles of two families."""
    drawn: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for picture in pictures:
        drawn[picture.concept.role][picture.family] += 1
    rng = random.Random(f"{seed}/valid")
    wanted, taken = VALID_SHARE * len(pictures), 0
    chosen: dict[str, str] = {}
    for role in rng.sample(sorted(drawn), len(drawn)):
        families = sorted(drawn[role])
        family = rng.choice(families)
        if len(families) < 2 or taken + drawn[role][family] > wanted:
            continue
        chosen[role] = family
        taken += drawn[role][family]
    return chosen


def check(split: dict[str, list[Picture]], held_out: frozenset[str]) -> None:
    """Reject splits that leak; see `assign` for the contents of each."""
    for name, pictures in split.items():
        for picture in pictures:
            keys = {picture.concept.key, *picture.also}
            if (name == "test_combinations") != bool(keys & held_out):
                raise EmojiDataError(f"{name}: {picture.image_id} breaks the held-out combinations")
            if (name == "test_artist") != (picture.artist == TEST_ARTIST):
                raise EmojiDataError(f"{name}: {picture.image_id} breaks the held-out artist")
    train = {(one.family, key) for one in split["train"] for key in (one.concept.key, *one.also)}
    for picture in split["valid"]:
        if (picture.family, picture.concept.key) in train:
            raise EmojiDataError(f"valid: {picture.image_id} is drawn the same in train")
    pixels = {name: {one.webp for one in pictures} for name, pictures in split.items()}
    for left in SPLITS:
        for right in SPLITS:
            if left < right and pixels[left] & pixels[right]:
                raise EmojiDataError(f"{left} and {right} share a picture, pixel for pixel")

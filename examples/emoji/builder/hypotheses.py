"""Hypotheses about pictures, and their labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from .categories import ASKED, CATEGORY, FACES, HANDS, SINGLE_PERSON
from .concepts import Concept, tone_words
from .pictures import Picture

LABELS = ("entailment", "neutral", "contradiction")
# Words that do not make two names similar.
FILLERS = frozenset({
    "a", "an", "and", "at", "by", "face", "facing", "for", "from", "in", "of", "on", "or", "right",
    "sign", "symbol", "the", "to", "with",
})  # fmt: skip


@dataclass(frozen=True)
class Hypothesis:
    """A claim: the picture shows one of `nouns`, of this gender ("" = any), of these tones.

    `nouns` are the base keys of which the noun is true, `unsure` those of which it may be true.
    `rivals` are the subgroups of hard negatives.
    """

    text: str
    nouns: frozenset[str]
    unsure: frozenset[str]
    rivals: frozenset[str]
    gender: str = ""
    tones: tuple[int, ...] = ()

    def label(self, picture: Picture) -> str | None:
        """Return the label; neutral if an attribute is open, None if there should be no row."""
        concept = picture.concept
        if concept.base in self.unsure:
            return None
        if concept.base not in self.nouns:
            return "contradiction" if concept.subgroup in self.rivals else None
        if picture.also:  # stands for several emoji at once
            return None
        open_attribute = False
        if self.gender:
            if not picture.gender:
                return None
            if picture.gender == "open":
                open_attribute = True
            elif picture.gender != self.gender:
                return "contradiction"
        if self.tones and concept.tones != self.tones:
            if concept.tones:
                return "contradiction"
            if not concept.tonable:
                return None
            open_attribute = True
        return "neutral" if open_attribute else "entailment"


def build_hypotheses(
    concepts: Mapping[str, Concept], alike: Iterable[frozenset[str]]
) -> list[Hypothesis]:
    """Return all hypotheses: names, gendered roles, names with skin tones, generalisations.

    `alike`: groups of base keys that some artist draws the same; they are never contrasted.
    """
    bases = {key: concept for key, concept in concepts.items() if key == concept.base}
    tones: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for concept in concepts.values():
        if concept.tones:
            tones[concept.base].append(concept.tones)
    confusable = _confusable(bases, alike)
    by_role: dict[str, set[str]] = defaultdict(set)
    for key, concept in bases.items():
        by_role[concept.role].add(key)
    claims: dict[str, Hypothesis] = {}
    for key, concept in bases.items():
        if concept.subgroup == "letter":
            continue
        role = frozenset(by_role[concept.role])
        gender = concept.gender if concept.gender in ("man", "woman") else ""
        # The noun is true of the whole role; a claimed gender is checked separately.
        nouns = role if concept.gender else frozenset({key})
        unsure = frozenset(set().union(*(confusable[noun] for noun in nouns)) - nouns)
        for tone in [(), *tones[key]]:
            text = f"{concept.base_name} with {tone_words(tone)}" if tone else concept.base_name
            claim = Hypothesis(text, nouns, unsure, _rivals(concept), gender, tone)
            claims.setdefault(text, claim)
    for claim in _generalisations(bases):
        claims[claim.text] = claim
    return list(claims.values())


def _rivals(concept: Concept) -> frozenset[str]:
    if concept.subgroup in FACES:
        return FACES - {concept.subgroup}
    return frozenset({concept.subgroup})


def _confusable(
    bases: Mapping[str, Concept], alike: Iterable[frozenset[str]]
) -> dict[str, set[str]]:
    """Return base key → bases whose pictures might be called by its name, or vice versa.

    This holds if the words of one are a subset of the other's (dog, guide dog), if they share a
    synonym, or if an artist draws both the same.
    """
    confusable: dict[str, set[str]] = defaultdict(set)
    members: dict[str, list[str]] = defaultdict(list)
    for key, concept in bases.items():
        members[concept.group].append(key)
    spoken = {
        key: [frozenset(name.split()) - FILLERS for name in concept.references]
        for key, concept in bases.items()
    }
    for keys in members.values():
        for left, right in combinations(keys, 2):
            if bases[left].role == bases[right].role:
                continue
            if any(a <= b or b <= a for a in spoken[left] for b in spoken[right]):
                confusable[left].add(right)
                confusable[right].add(left)
    for group in alike:
        for key in group:
            confusable[key] |= group - {key}
    return confusable


def _generalisations(bases: Mapping[str, Concept]) -> list[Hypothesis]:
    """Return general hypotheses: categories; woman, person and hand, with and without a tone."""
    categories: dict[str, set[str]] = defaultdict(set)
    groups: dict[str, str] = {}
    for key, concept in bases.items():
        categories[CATEGORY[concept.subgroup]].add(key)
        groups[CATEGORY[concept.subgroup]] = concept.group
    claims = []
    for category in sorted(ASKED & set(categories)):
        subgroups = {c.subgroup for c in bases.values() if c.group == groups[category]}
        rivals = {name for name in subgroups if CATEGORY[name] != category}
        claims.append(
            Hypothesis(category, frozenset(categories[category]), frozenset(), frozenset(rivals))
        )
    persons = frozenset(
        key
        for key, concept in bases.items()
        if concept.subgroup in SINGLE_PERSON and concept.gender and "child" not in concept.base_name
        and not {"people", "men", "women", "boy", "girl", "prince", "princess"}
        & set(concept.base_name.split())
    )  # fmt: skip
    hands = frozenset(key for key, concept in bases.items() if concept.subgroup in HANDS)
    for tone in [(), *((number,) for number in range(1, 6))]:
        spoken = f" with {tone_words(tone)}" if tone else ""
        for noun, gender in (("person", ""), ("man", "man"), ("woman", "woman")):
            unsure = frozenset(
                key for key, concept in bases.items()
                if key not in persons and concept.group == "people-body"
                and concept.subgroup not in HANDS
            )  # fmt: skip
            claims.append(Hypothesis(noun + spoken, persons, unsure, HANDS, gender, tone))
        claims.append(Hypothesis(f"hand{spoken}", hands, frozenset(), SINGLE_PERSON, "", tone))
    return claims

"""Three-way entailment rows, balanced so that the hypothesis alone does not predict the label."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .hypotheses import LABELS, Hypothesis
from .pictures import Picture

TWO_WAY_SHARE = 0.3


@dataclass(frozen=True)
class Row:
    """One question about one picture."""

    picture: Picture
    hypothesis: str
    label: str


def balanced_rows(
    pictures: Sequence[Picture],
    hypotheses: Sequence[Hypothesis],
    per_label: int,
    limit: int,
    seed: str,
) -> list[Row]:
    """Return rows in which every hypothesis has equally many rows of each possible label.

    With three labels, the text alone gives an accuracy of one third. Hypotheses that are never
    neutral ("dog") have two labels, so their rows are limited to TWO_WAY_SHARE of all. A hypothesis
    has at most `per_label` rows per label. Whole hypotheses are dropped at random until at most
    `limit` rows are left. The labels of each picture are balanced too, as far as possible: without
    open attributes it has no neutral rows.
    """
    rng = random.Random(seed)
    used: Counter[tuple[str, str]] = Counter()
    by_base: dict[str, list[int]] = defaultdict(list)
    by_subgroup: dict[str, list[int]] = defaultdict(list)
    for number, picture in enumerate(pictures):
        by_base[picture.concept.base].append(number)
        by_subgroup[picture.concept.subgroup].append(number)
    three_way: list[list[Row]] = []
    two_way: list[list[Row]] = []
    for claim in rng.sample(list(hypotheses), len(hypotheses)):
        choices: dict[str, list[Picture]] = {label: [] for label in LABELS}
        # All other pictures have no label for this hypothesis.
        about = {number for noun in claim.nouns for number in by_base[noun]}
        about.update(number for rival in claim.rivals for number in by_subgroup[rival])
        for number in sorted(about):
            label = claim.label(pictures[number])
            if label is not None:
                choices[label].append(pictures[number])
        if not choices["neutral"]:
            del choices["neutral"]
        count = min(per_label, *map(len, choices.values()))
        if not count:
            continue
        rows = []
        for label, candidates in choices.items():
            for picture in _pick(claim, label, candidates, count, used, rng):
                used[picture.image_id, label] += 1
                rows.append(Row(picture, claim.text, label))
        (three_way if "neutral" in choices else two_way).append(rows)
    kept = _take(three_way, round((1 - TWO_WAY_SHARE) * limit))
    kept += _take(two_way, round(TWO_WAY_SHARE / (1 - TWO_WAY_SHARE) * len(kept)))
    return rng.sample(kept, len(kept))


def _pick(
    claim: Hypothesis,
    label: str,
    candidates: Sequence[Picture],
    count: int,
    used: Counter[tuple[str, str]],
    rng: random.Random,
) -> list[Picture]:
    """Select the `count` pictures with the fewest rows of this label.

    Half of the contradictions have a true noun. They are wrong only in gender or tone, which makes
    them the hardest.
    """

    def order(picture: Picture) -> tuple[float, int, float]:
        rows = sum(used[picture.image_id, one] for one in LABELS)
        return used[picture.image_id, label] - rows / len(LABELS), rows, rng.random()

    ranked = sorted(candidates, key=order)
    if label != "contradiction":
        return ranked[:count]
    near = [one for one in ranked if one.concept.base in claim.nouns]
    far = [one for one in ranked if one.concept.base not in claim.nouns]
    # An odd count prefers near ones; if one kind runs out, the other replaces it.
    wanted = min(len(near), max((count + 1) // 2, count - len(far)))
    return near[:wanted] + far[: count - wanted]


def _take(groups: list[list[Row]], limit: int) -> list[Row]:
    """Take whole groups, in their (already random) order, up to `limit` rows."""
    kept: list[Row] = []
    for group in groups:
        if len(kept) + len(group) <= limit:
            kept += group
    return kept

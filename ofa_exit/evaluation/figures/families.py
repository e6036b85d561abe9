"""The methods of run_scripts in the order of tables, by family: one panel of curves each."""

from collections.abc import Sequence

BASELINE = "plain"
FAMILIES = {
    "MuE": ("tiny", "medium", "mue", "self_distil", "no_split", "no_layer_loss"),
    "DeeBERT, PABEE, LeeBERT, DeeCap": (
        *("deebert", "pabee", "pabee_shared", "leebert", "leebert_patience", "deecap"),
    ),
    "CALM, DEED": ("calm", "calm_softmax", "calm_meta", "calm_saturation", "deed"),
    "BLIPEE": ("deeblip", "leeblip", "blipee", "blipee_distill"),
}
ORDER = (BASELINE, *(name for family in FAMILIES.values() for name in family))
HEADLINES = ("plain", "mue", "deebert", "pabee", "deecap", "blipee")
"""Those of MuE's Table 1, and BLIPEE: what a figure with few methods shows."""
RUNS_PER_PANEL = 7
"""As many as there are colours: more methods are drawn by family."""


def panels(names: Sequence[str], baseline: str) -> dict[str, list[str]]:
    """Return titles and methods of the rows of panels; the baseline is in each."""
    if len(names) <= RUNS_PER_PANEL:
        return {"": list(names)}
    family = {name: title for title, members in FAMILIES.items() for name in members}
    rows: dict[str, list[str]] = {}
    for name in names:
        if name != baseline:
            rows.setdefault(family.get(name, "others"), [baseline]).append(name)
    return rows


def in_order(names: Sequence[str]) -> list[str]:
    """Return the names in the order of tables, and then the others as given."""
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: place.get(name, len(ORDER)))

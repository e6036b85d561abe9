"""The methods of run_scripts in the order of tables, by family: one panel of curves each."""

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


def in_order(names: list[str]) -> list[str]:
    """Return the names in the order of tables, and then the others as given."""
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(names, key=lambda name: place.get(name, len(ORDER)))

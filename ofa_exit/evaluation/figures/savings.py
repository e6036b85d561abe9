"""Savings of methods whose models differ, against one baseline at full depth."""

from dataclasses import replace

from ofa_exit.evaluation.figures.methods import Method, Sweep, Values, layers_counted

EXPECTED = {
    "expected_time_reduction": ("image_layers", "text_layers"),
    "expected_time_reduction_without_prompt": ("image_layers",),
}
"""Columns of Eq. 14, each with those that n_E is the mean of."""


def against_baseline(methods: list[Method], baseline: Method) -> list[Method]:
    """Return the methods with expected time and FLOPs saved against the baseline at full depth.

    A sweep states the savings of a model against itself. A smaller model, such as OFA tiny, saves
    before it exits: MuE's Table 1 counts its layers against those of OFA base. Measured time stays
    that of the sweep, against the own full depth or the model of --reference, since separate sweeps
    on a busy machine are not comparable. BLIPEE's speed-up stays that against the own full depth.

    Args:
        baseline: one of ``methods``. A seed compares with its same seed, or else with its first.
    """
    references = dict(zip(baseline.seed_names, baseline.seeds))
    return [
        replace(
            method,
            seeds=[
                _seed_against(seed, references.get(name, baseline.seeds[0]))
                for name, seed in zip(method.seed_names, method.seeds, strict=True)
            ],
        )
        for method in methods
    ]


def expected_time_reduction(
    values: Values, reference: Values, column: str = "expected_time_reduction"
) -> float:
    """Return MuE's Eq. 14 with N_E and N_D of another model.

        1 - (n_E / N_E + n_D / N_D) / 2

    n_E is the mean of image and text layers, or without a constant prompt those of the image. n_D
    follows from n_E and the sweep's own value of the equation, so that it includes layers of heads.

    Args:
        values: of a setting, with its layers and expected_time_reduction against those of its own
            model, or of the reference of its sweep.
        reference: of the other model, with its encoder_layers_full and decoder_layers_full.
        column: one of ``EXPECTED``.
    """
    own = layers_counted(values)
    other = reference["encoder_layers_full"], reference["decoder_layers_full"]
    if own == other:
        return values[column]
    parts = [values[name] for name in EXPECTED[column] if name in values]
    encoder = sum(parts) / len(parts)  # n_E
    decoder = (2 * (1 - values[column]) - encoder / own[0]) * own[1]  # n_D
    return 1 - (encoder / other[0] + decoder / other[1]) / 2


def _seed_against(seed: dict[str, Sweep], reference: dict[str, Sweep]) -> dict[str, Sweep]:
    full = {split: sweep.values(sweep.full_depth) for split, sweep in reference.items()}
    return {split: _against(sweep, full[split]) for split, sweep in seed.items()}


def _against(sweep: Sweep, reference: Values) -> Sweep:
    settings = {name: _relative(values, reference) for name, values in sweep.settings.items()}
    return replace(sweep, settings=settings)


def _relative(values: Values, reference: Values) -> Values:
    layers = ("encoder_layers_full", "decoder_layers_full")
    changed: Values = {}
    if all(name in one for name in layers for one in (values, reference)):
        for column in EXPECTED.keys() & values.keys():
            changed[column] = expected_time_reduction(values, reference, column)
    if "gflops_per_sentence" in values and "gflops_per_sentence" in reference:
        ratio = values["gflops_per_sentence"] / reference["gflops_per_sentence"]
        changed["flop_reduction"] = 1 - ratio
    return {**values, **changed}

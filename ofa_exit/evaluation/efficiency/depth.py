"""How deep a generation went: mean layers, and MuE's expected time reduction rate (Eq. 14)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class SampleDepth:
    """Layers that one sample used. A modality that it lacks has 0."""

    image_layers: int
    text_layers: int
    word_layers: tuple[int, ...]  # one per token of its best hypothesis, eos included; 0 = not run


def without_text(sample: SampleDepth) -> SampleDepth:
    """Return a sample with the layers of its image alone; one without an image stays as it is."""
    return replace(sample, text_layers=0) if sample.image_layers else sample


@dataclass(frozen=True)
class MeanLayers:
    """Means over the samples that have the modality; None if no sample has it."""

    image: float | None
    text: float | None
    decoder: float  # of each sample's mean over its words


def mean_layers(samples: Sequence[SampleDepth]) -> MeanLayers:
    """Return the mean layers of each part; every sample weighs the same.

    Raises:
        ValueError: there are no samples, or one without words.
    """
    if not samples:
        raise ValueError("mean layers of no samples at all")
    return MeanLayers(
        _mean([sample.image_layers for sample in samples if sample.image_layers]),
        _mean([sample.text_layers for sample in samples if sample.text_layers]),
        sum(_mean_of_words(parameters_used(sample, (), 0)) for sample in samples) / len(samples),
    )


def parse_reference_layers(text: str | None) -> tuple[int, int] | None:
    """Return encoder and decoder layers given as "6,6"; None for None.

    Raises:
        ValueError: these are not two whole numbers above 0.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(p.isascii() and p.isdecimal() and int(p) for p in parts):
        raise ValueError(
            f"--reference-layers {text!r}: give two whole numbers above 0, encoder and decoder "
            "layers, as in 6,6"
        )
    return int(parts[0]), int(parts[1])


def check_reference_layers(
    reference: tuple[int, int], encoder_layers: int, decoder_layers: int
) -> None:
    """Raise ValueError unless a model with these layers stays within the reference's."""
    if encoder_layers > reference[0] or decoder_layers > reference[1]:
        raise ValueError(
            f"--reference-layers {reference[0]},{reference[1]}: the model has {encoder_layers} "
            f"encoder and {decoder_layers} decoder layers. Give the layers of a model that is at "
            "least as deep"
        )


def expected_time_reduction(
    samples: Sequence[SampleDepth],
    encoder_layers: int,
    decoder_layers: int,
    exits: Collection[int] = (),
    head_depth: int = 0,
) -> float:
    """Return MuE's expected time reduction rate (Eq. 14), averaged over samples: 0 = full depth.

        1 - (n_E / N_E + Σ_i w_i·n_D(i) / Σ_i w_i·N_D) / 2

    N_E and N_D are the model's layers, or those of a reference model (OFA base for OFA tiny, as in
    the paper's Table 1). n_E and n_D are the layers used. The second quotient is the mean
    of n_D over the words of the best hypothesis, eos included, over N_D. A word that a closed set
    of answers forces, so that no layer runs for it, does not count.

    n_E is the plain mean of the layers used on the image and on the text, over the modalities that
    the sample has. In a joint encoder the two are equal. The paper has one number for the two
    passes of a split encoder and does not define it, so this may differ from the paper. A mean
    weighted by tokens does not fit the paper's tables. An image of 480 pixels has 900 tokens, and a
    prompt fewer than ten. The text layers that captioning drops (Table 2) could then not save the
    19 points that Table 4 attributes to the decomposition. ``flops.flop_reduction`` is the
    reduction in real FLOPs, tokens included.

    A text that several samples share counts for each, with the layers that it needs by itself. So
    does a constant prompt, whose pass is made once for all. Its part is the difference to the same
    of ``without_text``.

    Args:
        encoder_layers, decoder_layers: N_E and N_D.
        exits: decoder layers whose heads are used. A word that exits there also used the head's
            own layers.
        head_depth: layers of a head.

    Raises:
        ValueError: there are no samples, a sample without words or without any encoder layer, or
            more layers than N_E or N_D.
    """
    if not samples:
        raise ValueError("expected time reduction of no samples at all")
    total = 0.0
    for number, sample in enumerate(samples, start=1):
        used = [layers for layers in (sample.image_layers, sample.text_layers) if layers]
        if not used:
            raise ValueError(f"sample {number} used no encoder layer: neither image nor text?")
        if max(used) > encoder_layers or max(sample.word_layers, default=0) > decoder_layers:
            raise ValueError(
                f"sample {number} claims more layers ({sample}) than the model has "
                f"({encoder_layers} encoder, {decoder_layers} decoder)"
            )
        encoder_share = sum(used) / len(used) / encoder_layers
        words = parameters_used(sample, exits, head_depth)
        total += 1 - (encoder_share + _mean_of_words(words) / decoder_layers) / 2
    return total / len(samples)


def parameters_used(sample: SampleDepth, exits: Collection[int], head_depth: int) -> list[int]:
    """Return BLIPEE's i + k of every word of a sample that a layer was run for (Section 4).

    A word that exits through the head after layer i used i + k layers of p parameters each, with k
    = ``head_depth``. A word that reached the last layer used N. The speed-up is N / mean(i + k),
    over all words of the best hypotheses. The formula omits heads that a word passed without
    exiting. ``flops.flop_reduction`` counts them.

    The paper calls the total "parameters in the backbone", and averages over the layers of the
    language model alone. Here both are the decoder's layers.
    """
    return [layers + head_depth * (layers in exits) for layers in sample.word_layers if layers]


def _mean_of_words(layers: Sequence[int]) -> float:
    if not layers:
        raise ValueError("a sample without words: its hypothesis should at least hold eos")
    return sum(layers) / len(layers)


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None

"""How deep a generation went: mean layers, and MuE's expected time reduction rate (Eq. 14)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SampleDepth:
    """Layers one sample used. 0 = the sample has no such modality."""

    image_layers: int
    text_layers: int
    word_layers: tuple[int, ...]  # one a token of its best hypothesis, eos included; 0 = not run


@dataclass(frozen=True)
class MeanLayers:
    """Means over samples; a modality counts in the samples that have it and is None if none has."""

    image: float | None
    text: float | None
    decoder: float  # of each sample's mean over its words


def mean_layers(samples: Sequence[SampleDepth]) -> MeanLayers:
    """Mean layers of each part; every sample weighs the same, however many words it has.

    Raises ValueError for no samples, or a sample without words.
    """
    if not samples:
        raise ValueError("mean layers of no samples at all")
    return MeanLayers(
        _mean([sample.image_layers for sample in samples if sample.image_layers]),
        _mean([sample.text_layers for sample in samples if sample.text_layers]),
        sum(_words_mean(sample) for sample in samples) / len(samples),
    )


def expected_time_reduction(
    samples: Sequence[SampleDepth], encoder_layers: int, decoder_layers: int
) -> float:
    """Expected time reduction rate of MuE (Eq. 14), averaged over samples: 0 = every layer used.

        1 - (n_E / N_E + Σ_i w_i·n_D(i) / Σ_i w_i·N_D) / 2

    N_E and N_D are the model's layers; the second quotient is the mean over the sample's words
    (those of its best hypothesis, eos included) of the layers used, over N_D. Words that no layer
    was run for, forced by a closed set of answers, do not count. n_E, the paper's one
    number for two passes of a split encoder, is here the plain mean of the layers used on the
    image and on the text (over the modalities the sample has; for a joint encoder both are the
    same number). The paper does not define it, so this may differ from the paper. The other
    reading, weighting by tokens, does not fit its tables: a picture of 480 pixels has 900 tokens,
    a prompt fewer than ten, and then the text layers that captioning drops (Table 2) could not
    bring the 19 points of reduction which Table 4 ascribes to the decomposition. The cost in real
    operations, tokens included, is `flops.flop_reduction`.

    Raises ValueError for no samples, a sample without words or without any encoder layer, or more
    layers than there are.
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
        total += 1 - (encoder_share + _words_mean(sample) / decoder_layers) / 2
    return total / len(samples)


def parameter_speedup(
    samples: Sequence[SampleDepth], decoder_layers: int, exits: Collection[int], exit_size: int = 1
) -> float:
    """BLIPEE's speedup (Section 4): total over average number of parameters used, 1 = full depth.

    A word that left through the exit behind layer i used i + k layers of p parameters each,
    k = ``exit_size``; one that reached the last layer N. The paper calls the total "parameters in
    the backbone" and averages over layers of the language model alone; here both are the decoder's
    layers: N / mean(i + k), over all words of the best hypotheses. Exits that a word passed without
    leaving are not in the formula: ``flops.flop_reduction`` has them.

    Raises ValueError for no words.
    """
    used = [
        parameters for sample in samples for parameters in parameters_used(sample, exits, exit_size)
    ]
    if not used:
        raise ValueError("speedup of no words at all")
    return decoder_layers * len(used) / sum(used)


def parameters_used(sample: SampleDepth, exits: Collection[int], exit_size: int = 1) -> list[int]:
    """BLIPEE's i + k of every word of a sample that a layer was run for, in layers' parameters."""
    return [layers + exit_size * (layers in exits) for layers in sample.word_layers if layers]


def _words_mean(sample: SampleDepth) -> float:
    run = [layers for layers in sample.word_layers if layers]
    if not run:
        raise ValueError("a sample without words: its hypothesis should at least hold eos")
    return sum(run) / len(run)


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None

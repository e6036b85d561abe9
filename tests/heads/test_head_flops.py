"""What heads say they cost, against torch's own counter."""

import pytest
import torch
from helpers.flop_counts import CPU_CAPACITY, counted
from helpers.head_samples import DEPTH, KINDS, TRAINED, Context, noisy
from helpers.small_models import VOCAB, TriesHeads, batch, generate, select

from ofa_exit.evaluation.efficiency import flops
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.policies.confidence import ConfidenceExit

ROWS, POSITIONS = 3, 4


@pytest.mark.parametrize("words", [None, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_one_token_costs_what_torch_counts(kind, words):
    built, context = noisy(kind), Context()
    decoder = built.decoder
    heads, hidden = decoder.exit_heads, torch.randn(ROWS, POSITIONS, 32)
    chosen = None if words is None else torch.arange(4, 4 + words)
    tokens, shared = ROWS * POSITIONS, 2 * 32 * (words or VOCAB)
    assert decoder.word_flops(words) == shared

    def features(layer):
        made = heads.features(layer, hidden, context)
        if heads.has_confidence:  # counted with the features
            heads.confidence(layer, hidden)
        return made

    for layer in heads.layers:
        made = []
        real = counted(lambda layer=layer, made=made: made.append(features(layer)))
        assert heads.flops(layer, keys=9, source=11) * tokens == real
        scored = counted(
            lambda layer=layer, made=made: heads.scores(
                layer, made[0], chosen, decoder.shared_scores
            )
        )
        assert heads.score_flops(shared) * tokens == scored
    assert heads.cache_flops() == heads.source_flops(11) == 0


def test_costs_by_hand():
    """C = 32, V = 60."""
    by_kind = {kind: noisy(kind).decoder.exit_heads for kind in KINDS}
    shared, square = 2 * 32 * 60, 2 * 32 * 32
    features = {"adapter": 2 * 2 * 32 * 8, "meta": 2 * 2 * 32, "imitation": 3 * square}
    for kind, heads in by_kind.items():
        layers = {layer: heads.flops(layer, 9, 11) for layer in heads.layers}
        if kind == "imitation_all":
            assert layers == {layer: (2 + DEPTH - layer) * square for layer in range(1, DEPTH)}
        else:
            assert set(layers.values()) == {features.get(kind, 0)}
        pooler = square if kind == "linear_pooled" else 0
        assert heads.score_flops(shared) == shared + pooler


def test_parameters_by_hand():
    """Own weights of the heads after all 5 layers, biases included."""
    channels, words, narrow = 32, 60, 8
    linear = channels**2 + channels
    norm = 2 * channels
    expected = {
        "linear": 5 * (norm + words * channels),
        "linear_pooled": 5 * (norm + words * channels + linear),
        "adapter": 5 * (2 * channels * narrow + narrow + channels),
        "imitation": 5 * (norm + 2 * linear) + linear,
        "imitation_all": 5 * (norm + 2 * linear) + linear,
        "meta": 2 * channels + 2,
        "shared": 0,
    }
    for kind in KINDS:
        heads = noisy(kind, "1,2,3,4,5").decoder.exit_heads
        assert sum(p.numel() for p in heads.parameters()) == expected[kind]


class Scripted(TriesHeads):
    """Leaves by time step; asks for a learned confidence where there is one."""

    def __init__(self, built, *layers):
        self.heads, self.layers = built.decoder.exit_heads, layers

    def exits_at(self, seen):
        if seen.has_head and self.heads.has_confidence:
            self.heads.confidence(seen.layer, seen.current)
        return seen.layer >= self.layers[int(seen.step)]


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_costs_what_torch_counts(kind, kv):
    built = noisy(kind).requires_grad_(False)
    sentence = select(batch(1, size=48), 0)
    built.configure_exits(Scripted(built, 1, 3, 6, 2, 1, 5, 4), kv)
    for part in (built.encoder, built.decoder):
        part.forget_shapes()
    real = counted(lambda: generate(built, sentence, steps=6, beam_size=2, min_len=6))
    trace = built.last_trace
    cells, text = built.encoder.image_tokens(48, 48), int(sentence["src_lengths"])
    counts = flops.batch_flops(trace)
    biases = flops.bias_costs(built, cells, text, CPU_CAPACITY)
    assert sum(counts.executed.values()) + sum(biases.values()) == real
    assert counts.executed["exits"] > 0 == counts.full["exits"]


@pytest.mark.parametrize("kind", TRAINED)
@torch.no_grad()
def test_the_parts_of_the_report_add_up(kind):
    """All words leave at layer 1, with the scores that the gate asked for: one head a token."""
    built = noisy(kind)
    built.configure_exits(ConfidenceExit(0.0))
    report = GenerationReport(built)
    hypotheses = generate(built, batch(2))
    tokens = [[h["tokens"].tolist() for h in of] for of in hypotheses]
    trace = built.last_trace
    report.add(["a", "b"], trace, tokens, [7, 5], (32, 32), 1.0)
    counts = flops.batch_flops(trace)
    rows = sum(len(step.layers_used) for step in trace.steps)
    heads, shared = built.decoder.exit_heads, built.decoder.word_flops()
    scored = heads.score_flops(shared)
    assert counts.executed["exits"] == rows * (heads.flops(1, 9, 11) + scored)
    assert counts.executed["vocabulary"] == 0
    assert counts.full["vocabulary"] == rows * shared
    biases = sum(report.totals().biases.values())
    executed, full = (sum(parts.values()) + biases for parts in (counts.executed, counts.full))
    assert report.summary()["flop_reduction"] == pytest.approx(1 - executed / full)
    assert report.summary()["decoder_layers"] == 1
    assert report.summary()["parameter_speedup"] == 6  # heads have no layers of their own

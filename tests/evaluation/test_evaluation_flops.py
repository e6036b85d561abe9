"""Counts of operations: by hand, and against torch's counter on the real model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.flop_counts import CPU_CAPACITY, counted
from helpers.small_models import batch, generate, nano, select

from ofa_exit.evaluation.efficiency import flops
from ofa_exit.evaluation.efficiency.flops import DecoderCall, ModelShape, SentenceCall, StemCost
from ofa_exit.models.layers import DecoderLayer, EncoderLayer
from ofa_exit.models.stem import ResNetStem
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.trace import DecoderStep

TINY = ModelShape(
    encoder_dim=4,
    encoder_ffn_dim=8,
    encoder_layers=3,
    decoder_dim=4,
    decoder_ffn_dim=8,
    decoder_layers=3,
    vocabulary=10,
    image_channels=6,
    split=True,
)


def test_parts_by_hand():
    # T = 3: four projections 4·2·3·16 = 384, scores and mixing 2·2·9·4 = 144, FFN 2·2·3·4·8 = 384.
    assert flops.encoder_layer(TINY, 3) == 912
    assert flops.encoder_layer(TINY, 0) == 0
    # Six projections 6·2·16 = 192, attention over 2 + 5 positions 2·2·7·4 = 112, FFN 2·2·4·8 = 128.
    assert flops.decoder_layer(TINY, 2, 5) == 432
    assert flops.cross_key_values(TINY, 5) == 2 * 2 * 5 * 16
    assert flops.self_key_values(TINY) == 2 * 2 * 16
    assert flops.vocabulary_projection(TINY) == 2 * 4 * 10
    assert flops.image_projection(TINY, 3) == 2 * 3 * 6 * 4


def test_a_batch_by_hand():
    # Two hypotheses, two steps. Step 1 leaves after layer 1, step 2 goes to layer 3 and so owes
    # position 0 the layers 2 and 3, for both hypotheses.
    calls = [
        DecoderCall(1, 1, {0: SentenceCall(2, 1, asked=2)}),
        DecoderCall(2, 1, {0: SentenceCall(2, 3, repaid=2 * 2, asked=2)}),
    ]
    done = flops.batch_flops(TINY, StemCost(1000, 3), [2], [1], [2], calls, "propagate")
    layer_1, layer_2 = flops.decoder_layer(TINY, 1, 5), flops.decoder_layer(TINY, 2, 5)
    assert done.executed == {
        "stem": 1000 + 144,
        "biases": 0,
        "encoder": 2 * flops.encoder_layer(TINY, 3) + flops.encoder_layer(TINY, 2),
        "cross_kv": 3 * 320,
        "decoder": 2 * (1 * layer_1 + 3 * layer_2),
        "skipped_kv": 2 * 2 * 64,
        "exits": 0,
        "vocabulary": 2 * 2 * 80,
    }
    assert done.full == {
        **done.executed,
        "encoder": 3 * (flops.encoder_layer(TINY, 3) + flops.encoder_layer(TINY, 2)),
        "decoder": 2 * 3 * (layer_1 + layer_2),
        "skipped_kv": 0,
    }
    recomputed = flops.batch_flops(TINY, StemCost(1000, 3), [2], [1], [2], calls, "recompute")
    assert recomputed.executed == {**done.executed, "skipped_kv": 2 * 2 * layer_2}


def test_joint_biases_have_room_for_texts_up_to_the_models_longest():
    joint = replace(TINY, split=False, text_room=32, max_text=50)
    assert [flops.bias_text(joint, 6, text) for text in (5, 32, 40)] == [32, 32, 50]
    assert flops.bias_text(joint, 0, 5) == flops.bias_text(TINY, 6, 5) == 5


def test_cross_kv_is_made_for_the_sentences_that_get_there():
    # Sentence 1 goes to layer 2 alone, and later, when sentence 0 is finished, to layer 3.
    calls = [
        DecoderCall(1, 1, {0: SentenceCall(1, 1), 1: SentenceCall(1, 2)}),
        DecoderCall(2, 1, {1: SentenceCall(1, 3)}),
    ]
    done = flops.batch_flops(TINY, None, [0, 0], [3, 3], [4, 6], calls)
    assert done.executed["cross_kv"] == 64 * 4 + 3 * 64 * 6
    assert done.full["cross_kv"] == 3 * 64 * (4 + 6)


def test_whole_sequences_share_nothing():
    calls = [DecoderCall(3, 3, {0: SentenceCall(1, layers)}) for layers in (1, 3)]
    done = flops.batch_flops(TINY, None, [0], [3], [4], calls)
    assert done.executed["cross_kv"] == 64 * 4 * (1 + 3)
    assert done.executed["decoder"] == 3 * (1 + 3) * flops.decoder_layer(TINY, 3, 4)
    assert done.executed["skipped_kv"] == 0


def test_full_depth_reduces_nothing_and_any_exit_something():
    calls = [DecoderCall(n, 1, {0: SentenceCall(2, 3, asked=2)}) for n in (1, 2, 3)]
    full = flops.batch_flops(TINY, StemCost(10, 3), [3], [3], [2], calls)
    assert full.executed == full.full
    assert flops.flop_reduction(full.executed, full.full) == 0
    less = flops.batch_flops(TINY, StemCost(10, 3), [3], [2], [2], calls)
    expected = flops.encoder_layer(TINY, 2) / sum(full.full.values())
    assert flops.flop_reduction(less.executed, less.full) == pytest.approx(expected)


def test_joint_encoder_counts_one_pass():
    joint = ModelShape(**{**vars(TINY), "split": False})
    done = flops.batch_flops(joint, StemCost(0, 3), [2, 0], [2, 2], [2, 2], [])
    assert done.executed["encoder"] == 2 * (
        flops.encoder_layer(joint, 5) + flops.encoder_layer(joint, 2)
    )


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="choose one of propagate, recompute"):
        flops.batch_flops(TINY, None, [0], [1], [1], [], "lazy")


def test_trace_is_read_by_sentence():
    def step(length, sentence, layers, ran, repaid, asked):
        rows = (torch.tensor(row) for row in (sentence, layers, ran, repaid, asked))
        return DecoderStep(torch.zeros(len(sentence), length), *rows)

    trace = SimpleNamespace(
        steps=[
            step(1, [0, 0, 2, 2], [[1], [3], [2], [2]], [3] * 4, [0] * 4, [1] * 4),
            step(2, [2, 2], [[1], [2]], [3, 3], [1, 1], [1, 1]),
            step(3, [2], [[1, 3, 2]], [3], [0], [2]),
        ]
    )
    assert flops.trace_calls(trace) == [
        DecoderCall(1, 1, {0: SentenceCall(2, 3, 0, 2), 2: SentenceCall(2, 3, 0, 2)}),
        DecoderCall(2, 1, {2: SentenceCall(2, 3, 2, 2)}),
        DecoderCall(3, 3, {2: SentenceCall(1, 3, 0, 2)}),
    ]


def test_counting_leaves_the_stem_as_it_was():
    stem, image = nano().encoder.embed_images, torch.ones(1, 3, 32, 32)
    with torch.no_grad():
        before = stem(image)
        flops.stem_cost(stem, (32, 32))
        torch.testing.assert_close(stem(image), before)
    assert not any(module.training for module in stem.modules())


def test_layers_of_the_model_cost_what_is_said():
    encoder, decoder = EncoderLayer(32, 48, 4), DecoderLayer(32, 48, 4)
    shape = ModelShape(32, 48, 1, 32, 48, 1, 10, 6, True)
    states = torch.randn(2, 7, 32)
    assert counted(lambda: encoder(states, torch.zeros(1, 4, 7, 7))) == 2 * flops.encoder_layer(
        shape, 7
    )
    cross = decoder.encoder_attn.project_kv(torch.randn(1, 5, 32))
    made = counted(lambda: decoder.encoder_attn.project_kv(torch.randn(1, 5, 32)))
    assert made == flops.cross_key_values(shape, 5)

    def one_more(key, value):  # three positions are there already
        return torch.cat([key] * 4, dim=2), torch.cat([value] * 4, dim=2)

    def run():
        decoder(
            torch.randn(2, 1, 32), torch.zeros(1, 4, 1, 4), cross, torch.zeros(1, 4, 1, 5), one_more
        )

    assert counted(run) == 2 * flops.decoder_layer(shape, 4, 5)
    assert counted(lambda: decoder.self_kv(torch.randn(1, 1, 32))) == flops.self_key_values(shape)


def test_stem_is_counted_without_running():
    stem = ResNetStem((1, 1, 2), width=8, drop_path=0.1)
    stem.train()
    before = {name: value.clone() for name, value in stem.state_dict().items()}
    cost = flops.stem_cost(stem, (64, 48))
    assert cost.tokens == 4 * 3
    assert stem.training and stem.layer3.training
    assert all(torch.equal(value, before[name]) for name, value in stem.state_dict().items())
    stem.eval()
    assert cost.flops == counted(lambda: stem(torch.randn(1, 3, 64, 48)))


class Scripted(ExitPolicy):
    """Leaves after given layers; decoder: by time step, every second row a layer sooner."""

    def __init__(self, image, text, steps):
        self.image, self.text, self.steps = image, text, steps

    def image_gate(self):
        return lambda seen: seen.layer >= self.image

    def text_gate(self):
        return lambda seen: seen.layer >= self.text

    joint_gate = text_gate

    def decoder_gate(self):
        def gate(seen):
            sooner = torch.arange(len(seen.current))[:, None] % 2
            return seen.layer >= self.steps[int(seen.step)] - sooner

        return gate


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
@pytest.mark.parametrize("split", [True, False])
def test_generation_costs_what_torch_counts(split, kv):
    """A whole beam search of the real model, exits included, to the last operation."""
    model = nano(split).requires_grad_(False)  # torch's counter stumbles over views of parameters
    shape = ModelShape.from_model(model)
    sentence = select(batch(1, size=48), 0)
    text = int(sentence["src_lengths"])
    stem = flops.stem_cost(model.encoder.embed_images, (48, 48))
    source = stem.tokens + text
    biases = (
        flops.encoder_biases(shape, stem.tokens, source - stem.tokens)
        + flops.decoder_self_bias(shape, CPU_CAPACITY)
        + flops.decoder_cross_bias(shape, CPU_CAPACITY, source)
    )

    def generation(policy):
        model.configure_exits(policy, kv)
        model.encoder.forget_shapes()
        model.decoder.forget_shapes()
        real = counted(lambda: generate(model, sentence, steps=4, beam_size=2, min_len=4))
        trace = model.last_trace
        calls = flops.trace_calls(trace)
        images, texts = trace.image_layers.tolist(), trace.text_layers.tolist()
        counts = flops.batch_flops(shape, stem, images, texts, [text], calls, kv)
        assert sum(counts.executed.values()) + biases == real
        return counts

    full = generation(Scripted(6, 6, [7] * 5))  # 7: not even the sooner ones leave
    assert full.executed == full.full
    exits = generation(Scripted(2, 4, [2, 1, 5, 3, 6]))
    assert exits.full == full.full
    # Position 0 owes 4 layers in the end, position 1 5, position 2 1 and position 3 3.
    cost = flops.self_key_values(shape)
    owed = exits.executed["skipped_kv"] / 2 / cost
    assert owed == 13 if kv == "propagate" else owed > 13
    for part in ("encoder", "decoder"):
        assert exits.executed[part] < full.executed[part]


def test_a_batch_costs_its_sentences():
    """Two sentences of one length and depth: only the position biases are the batch's."""
    model = nano().requires_grad_(False)
    shape = ModelShape.from_model(model)
    two = batch(2)
    two["src_tokens"][1] = two["src_tokens"][0].flip(0).clone()
    two["src_tokens"][1, 0], two["src_tokens"][1, -1] = 0, 2
    model.configure_exits(StaticExit((1, 2, 3)))
    real = counted(lambda: generate(model, two, steps=2, beam_size=2, min_len=2))
    trace = model.last_trace
    stem = flops.stem_cost(model.encoder.embed_images, (32, 32))
    counts = flops.batch_flops(
        shape, stem, [1, 1], [2, 2], [7, 7], flops.trace_calls(trace), "propagate"
    )
    source = stem.tokens + 7
    shared = flops.encoder_biases(
        shape, stem.tokens, source - stem.tokens
    ) + flops.decoder_self_bias(shape, CPU_CAPACITY)
    shared += flops.decoder_cross_bias(shape, CPU_CAPACITY, source)
    assert sum(counts.executed.values()) + shared == real


def test_a_teacher_forced_pass_costs_whole_sequences():
    model = nano().requires_grad_(False)
    shape = ModelShape.from_model(model)
    sentence = select(batch(1, target=5), 0)
    model.configure_exits(StaticExit((1, 2, 3)))
    real = counted(lambda: model(**sentence))
    stem = flops.stem_cost(model.encoder.embed_images, (32, 32))
    calls = flops.trace_calls(model.last_trace)
    assert calls == [DecoderCall(5, 5, {0: SentenceCall(1, 3, asked=5)})]
    counts = flops.batch_flops(shape, stem, [1], [2], [7], calls)
    source = stem.tokens + 7
    biases = flops.encoder_biases(
        shape, stem.tokens, source - stem.tokens
    ) + flops.decoder_self_bias(shape, 5)
    biases += flops.decoder_cross_bias(shape, 5, source)
    assert sum(counts.executed.values()) + biases == real

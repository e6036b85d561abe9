"""FLOPs: by hand, and against torch's counter on the real model."""

import pytest
import torch
from helpers.flop_counts import CPU_CAPACITY, counted
from helpers.small_models import VOCAB, batch, generate, nano, select

from ofa_exit.evaluation.efficiency.flops import batch_flops, bias_costs, flop_reduction
from ofa_exit.models.layers import DecoderLayer, EncoderLayer
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.flops import Work
from ofa_exit.runtime.trace import DecoderStep, ExitTrace

SELF_KV, WORD = 2 * 2 * 16, 2 * 4 * VOCAB  # prices of the tiny model, per token


def tiny(split=True, **options):
    """A model of 4 channels, 8 of them in the feed-forward block, and 3 + 3 layers."""
    sizes = {"encoder_embed_dim": 4, "encoder_ffn_embed_dim": 8, "encoder_layers": 3}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return nano(split, **sizes, **heads, decoder_layers=3, **options)


def encoder_layer(tokens):
    """Four projections, attention and feed-forward block of the tiny model."""
    return 8 * tokens * 16 + 4 * tokens**2 * 4 + 4 * tokens * 4 * 8


def decoder_layer(keys, source):
    """Six projections, two attentions and feed-forward block of the tiny model, for a token."""
    return 12 * 16 + 4 * (keys + source) * 4 + 4 * 4 * 8


def cross_kv(source):
    return 2 * 2 * source * 16


class Scripted(ExitPolicy):
    """Exits after given layers; decoder: by time step, every second row ``sooner`` by a layer."""

    def __init__(self, image, text, steps, sooner=1):
        self.image, self.text, self.steps, self.sooner = image, text, steps, sooner

    def image_gate(self, seen):
        return seen.layer >= self.image

    def text_gate(self, seen):
        return seen.layer >= self.text

    joint_gate = text_gate

    def decoder_gate(self, seen):
        odd = torch.arange(len(seen.current))[:, None] % 2
        return seen.layer >= self.steps[int(seen.step[0])] - self.sooner * odd


def test_parts_by_hand():
    model = tiny()
    encoder, decoder = model.encoder, model.decoder
    # T = 3: four projections 4·2·3·16 = 384, scores and mixing 2·2·9·4 = 144, FFN 2·2·3·4·8 = 384.
    assert encoder.layers[0].flops(3) == encoder_layer(3) == 912
    assert encoder.layers[0].flops(0) == 0
    # Six projections 6·2·16 = 192, attention over 2 + 5 positions 2·2·7·4 = 112, FFN 2·2·4·8 = 128.
    assert decoder.layer(1).flops(2, 5) == decoder_layer(2, 5) == 432
    assert decoder.layer(1).cross_kv_flops(5) == cross_kv(5) == 320
    assert decoder.layer(1).self_kv_flops() == SELF_KV == 64
    assert decoder.word_flops() == WORD == 480
    assert decoder.word_flops(7) == 2 * 4 * 7
    assert encoder.image_tokens(48, 16) == 3
    assert encoder.image_flops(48, 16) == encoder.embed_images.flops(48, 16) + 2 * 3 * 128 * 4


def test_heads_by_hand():
    transformer = tiny(exit_layers="1").decoder.exit_heads
    assert transformer.flops(1, 2, 5) == 432
    assert (transformer.cache_flops(), transformer.source_flops(5)) == (64, 320)
    shared = tiny(exit_layers="1", exit_head="shared").decoder.exit_heads
    assert shared.flops(1, 2, 5) == shared.cache_flops() == shared.source_flops(5) == 0
    assert transformer.score_flops(480) == shared.score_flops(480) == 480


def test_biases_by_hand():
    # 2·2·C² per position, 2·C per pair: 36 + 25 pairs in two passes, 11² in one.
    assert bias_costs(tiny(), 6, 5, 2) == {
        "encoder 6 5": 4 * 11 * 16 + 2 * 61 * 4,
        "self 2": 4 * 2 * 16 + 2 * 4 * 4,
        "cross 6 5 2": 2 * 13 * 16 + 2 * 22 * 4,
    }


def test_joint_biases_have_room_for_texts_up_to_the_models_longest():
    joint = tiny(split=False, max_source_positions=50).encoder
    for text, room in ((5, 32), (32, 32), (40, 50)):
        tokens = 6 + room
        assert joint.bias_flops(6, text) == {
            f"encoder 6 {room}": 4 * tokens * 16 + 2 * tokens**2 * 4
        }
    assert joint.bias_flops(0, 5) == {"encoder 0 5": 4 * 5 * 16 + 2 * 25 * 4}


def generated(model, policy, kv, steps, text=2):
    """Generate for one sentence with an image of 3 tokens by 2 hypotheses; return the FLOPs."""
    model.configure_exits(policy, kv)
    sentence = select(batch(1), 0)
    sentence["src_tokens"] = sentence["src_tokens"][:, :text]
    sentence["patch_images"] = torch.randn(1, 3, 48, 16)
    generate(model, sentence, steps=steps - 1, beam_size=2, min_len=steps - 1)
    assert len(model.last_trace.steps) == steps
    return batch_flops(model.last_trace)


@pytest.mark.parametrize(
    ("kv", "skipped", "crossed"),
    [("propagate", SELF_KV, 3), ("recompute", decoder_layer(16, 5), 3), ("copy", 0, 1)],
)
def test_a_batch_by_hand(kv, skipped, crossed):
    # Two hypotheses, two steps. Step 1 exits after layer 1, step 2 goes to layer 3. So layers 2
    # and 3 lack position 0 of both hypotheses. The cache has room for 16 positions.
    model = tiny()
    done = generated(model, Scripted(2, 1, [1, 3], sooner=0), kv, 2)
    assert decoder_layer(16, 5) == 656 and encoder_layer(2) == 576
    assert done.executed == {
        "stem": model.encoder.image_flops(48, 16),
        "biases": 0,
        "encoder": 2 * 912 + 576,
        "cross_kv": crossed * 320,
        "decoder": 2 * (1 + 3) * 656,
        "skipped_kv": 2 * 2 * skipped,
        "exits": 0,
        "vocabulary": 2 * 2 * 480,
    }
    assert done.full == {
        **done.executed,
        "encoder": 3 * (912 + 576),
        "cross_kv": 3 * 320,
        "decoder": 2 * 3 * 2 * 656,
        "skipped_kv": 0,
    }


class ByStep(ExitPolicy):
    """Sentence i, which its step limit 100 + i numbers, exits after layer 1 + i, later never."""

    def decoder_gate(self, seen):
        depth = torch.where(seen.step == 0, seen.step_limit - 99, 3)
        return (seen.layer >= depth).expand(seen.current.shape[:2])


@torch.no_grad()
def test_cross_kv_is_made_for_the_sentences_that_get_there():
    # Sentence 1 goes to layer 2 alone, and later, when sentence 0 is finished, to layer 3.
    model = tiny()
    model.configure_exits(ByStep())
    source = torch.tensor([[0, 5, 6, 2, 1, 1], [0, 7, 8, 9, 10, 2]])
    prev, both, second = torch.tensor([[0, 4], [0, 5]]), torch.arange(2), torch.tensor([1])
    out = model.encoder(source, step_limit=100 + both).reordered(both)
    state: dict = {}
    model.decoder(prev[:, :1], out, incremental_state=state)
    model.decoder.reorder_incremental_state_scripting(state, both)
    model.decoder.reorder_incremental_state_scripting(state, second)
    model.decoder(prev[second], out.reordered(second), incremental_state=state)
    done = batch_flops(model.last_trace)
    assert done.executed["cross_kv"] == 64 * 4 + 3 * 64 * 6
    assert done.full["cross_kv"] == 3 * 64 * (4 + 6)
    # Step 2 runs layers 2 and 3 for sentence 1. Layer 3 alone lacks its first position.
    assert done.executed["skipped_kv"] == SELF_KV
    assert done.executed["decoder"] == decoder_layer(16, 4) + (2 + 3) * decoder_layer(16, 6)


@torch.no_grad()
def test_whole_sequences_share_nothing():
    model = tiny()
    out = model.encoder(torch.tensor([[0, 5, 6, 2]]))
    out.trace = ExitTrace(torch.tensor([0]), torch.tensor([3]), torch.tensor([4]))
    for layers in (1, 3):
        model.configure_exits(StaticExit((3, 3, layers)))
        model.decoder(torch.tensor([[0, 4, 5]]), out)
    done = batch_flops(out.trace)
    assert done.executed["cross_kv"] == 64 * 4 * (1 + 3)
    assert done.executed["decoder"] == 3 * (1 + 3) * decoder_layer(3, 4)
    assert done.executed["skipped_kv"] == 0
    assert done.full["cross_kv"] == 2 * 3 * 64 * 4
    assert done.full["decoder"] == 2 * 3 * 3 * decoder_layer(3, 4)


def test_full_depth_reduces_nothing_and_any_exit_something():
    model = tiny()
    full = generated(model, Scripted(3, 3, [3] * 3, sooner=0), "propagate", 3)
    assert full.executed == full.full
    assert flop_reduction(full.executed, full.full) == 0
    less = generated(model, Scripted(3, 2, [3] * 3, sooner=0), "propagate", 3)
    expected = encoder_layer(2) / sum(full.full.values())
    assert flop_reduction(less.executed, less.full) == pytest.approx(expected)


@pytest.mark.parametrize("split", [True, False])
@torch.no_grad()
def test_encoder_work_by_hand(split):
    """Images of 3 tokens; the second is missing, and the second text is shorter by two."""
    model, images = tiny(split), torch.randn(2, 3, 48, 16)
    model.configure_exits(StaticExit((2, 1, 1) if split else (2, 2, 1)))
    source = torch.tensor([[0, 5, 6, 7, 2], [0, 7, 2, 1, 1]])
    out = model.encoder(source, patch_images=images, patch_masks=torch.tensor([True, False]))
    assert out.trace.source_tokens.tolist() == [3 + 5, 3]
    done = batch_flops(out.trace)
    assert done.executed["stem"] == done.full["stem"] == model.encoder.image_flops(48, 16)
    if split:
        texts = encoder_layer(5) + encoder_layer(3)
        assert done.executed["encoder"] == 2 * encoder_layer(3) + texts
        assert done.full["encoder"] == 3 * (encoder_layer(3) + texts)
    else:
        both = encoder_layer(3 + 5) + encoder_layer(3)
        assert (done.executed["encoder"], done.full["encoder"]) == (2 * both, 3 * both)
    # A text alone.
    model.encoder(source[:1])
    done = batch_flops(model.last_trace)
    assert done.executed["encoder"] == (1 if split else 2) * encoder_layer(5)
    assert done.executed["stem"] == done.full["stem"] == 0


def test_work_is_read_by_sentence():
    def step(sentences, units):
        rows = torch.zeros(len(sentences), 1, dtype=torch.long)
        work = Work("decoder", lambda source: source, units)
        full = Work("decoder", lambda source: 10 * source, units)
        return DecoderStep(
            rows, torch.tensor(sentences), rows, rows[:, 0], rows[:, 0], 1, [work], [full]
        )

    # Sentences 0 and 2 are present, then 2 alone. Units may be on a device.
    steps = [step([0, 0, 2, 2], [2, 3]), step([2, 2], torch.tensor([5])), step([2], [0])]
    none = torch.zeros(3, dtype=torch.long)
    done = batch_flops(ExitTrace(none, none, torch.tensor([4, 100, 6]), steps=steps))
    assert done.executed["decoder"] == 2 * 4 + 3 * 6 + 5 * 6
    assert done.full["decoder"] == 10 * done.executed["decoder"]


def test_layers_of_the_model_cost_what_is_said():
    encoder, decoder = EncoderLayer(32, 48, 4), DecoderLayer(32, 48, 4)
    states = torch.randn(2, 7, 32)
    assert counted(lambda: encoder(states, torch.zeros(1, 4, 7, 7))) == 2 * encoder.flops(7)
    cross = decoder.encoder_attn.project_kv(torch.randn(1, 5, 32))
    made = counted(lambda: decoder.encoder_attn.project_kv(torch.randn(1, 5, 32)))
    assert made == decoder.cross_kv_flops(5)

    def one_more(key, value):  # three positions are there already
        return torch.cat([key] * 4, dim=2), torch.cat([value] * 4, dim=2)

    def run():
        decoder(
            torch.randn(2, 1, 32), torch.zeros(1, 4, 1, 4), cross, torch.zeros(1, 4, 1, 5), one_more
        )

    assert counted(run) == 2 * decoder.flops(4, 5)
    assert counted(lambda: decoder.self_kv(torch.randn(1, 1, 32))) == decoder.self_kv_flops()


@pytest.mark.parametrize("kv", ["propagate", "recompute", "copy"])
@pytest.mark.parametrize("split", [True, False])
def test_generation_costs_what_torch_counts(split, kv):
    """A whole beam search of the real model, exits included, to the last operation."""
    model = nano(split).requires_grad_(False)  # torch's counter stumbles over views of parameters
    sentence = select(batch(1, size=48), 0)
    text = int(sentence["src_lengths"])
    cells = model.encoder.image_tokens(48, 48)
    biases = sum(bias_costs(model, cells, text, CPU_CAPACITY).values())

    def generation(policy):
        model.configure_exits(policy, kv)
        model.encoder.forget_shapes()
        model.decoder.forget_shapes()
        real = counted(lambda: generate(model, sentence, steps=4, beam_size=2, min_len=4))
        counts = batch_flops(model.last_trace)
        assert sum(counts.executed.values()) + biases == real
        return counts

    full = generation(Scripted(6, 6, [7] * 5))  # 7: not even the sooner ones exit
    assert full.executed == full.full
    exits = generation(Scripted(2, 4, [2, 1, 5, 3, 6]))
    assert exits.full == full.full
    # Position 0 lacks 4 layers in the end, position 1 5, position 2 1 and position 3 3.
    filled = exits.executed["skipped_kv"] / 2 / model.decoder.layer(1).self_kv_flops()
    if kv == "recompute":
        assert filled > 13
    else:
        assert filled == (13 if kv == "propagate" else 0)
    for part in ("encoder", "decoder"):
        assert exits.executed[part] < full.executed[part]


def test_a_batch_costs_its_sentences():
    """Two sentences of one length and depth: only the position biases are the batch's."""
    model = nano().requires_grad_(False)
    two = batch(2)
    two["src_tokens"][1] = two["src_tokens"][0].flip(0).clone()
    two["src_tokens"][1, 0], two["src_tokens"][1, -1] = 0, 2
    model.configure_exits(StaticExit((1, 2, 3)))
    real = counted(lambda: generate(model, two, steps=2, beam_size=2, min_len=2))
    trace = model.last_trace
    assert (trace.image_layers.tolist(), trace.text_layers.tolist()) == ([1, 1], [2, 2])
    counts, cells = batch_flops(trace), model.encoder.image_tokens(32, 32)
    shared = sum(bias_costs(model, cells, 7, CPU_CAPACITY).values())
    assert sum(counts.executed.values()) + shared == real


def test_a_teacher_forced_pass_costs_whole_sequences():
    model = nano().requires_grad_(False)
    sentence = select(batch(1, target=5), 0)
    model.configure_exits(StaticExit((1, 2, 3)))
    real = counted(lambda: model(**sentence))
    trace = model.last_trace
    (step,) = trace.steps
    assert (step.keys, step.sentence.tolist(), step.layers_run.tolist()) == (5, [0], [3])
    assert step.layers_used.tolist() == [[3] * 5] and step.kv_backfilled.tolist() == [0]
    counts, cells = batch_flops(trace), model.encoder.image_tokens(32, 32)
    assert (trace.image_layers.tolist(), trace.text_layers.tolist()) == ([1], [2])
    biases = sum(bias_costs(model, cells, 7, 5).values())
    assert sum(counts.executed.values()) + biases == real

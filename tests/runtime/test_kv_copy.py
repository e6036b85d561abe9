"""``--exit-kv copy`` against a loop written from its definition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.small_models import VOCAB, batch, generate, nano, select

from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.measures import hidden_saturation
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.kv_cache import KV_MODES

STEPS = 8
DEPTHS = (2, 1, 5, 3, 6, 1, 1, 4, 6)  # down, up and to the last layer: copies of copies


class ByStep(ExitPolicy):
    """Exits after the layer that ``DEPTHS`` has for the time step."""

    def decoder_gate(self, seen):
        exits = seen.layer >= DEPTHS[int(seen.step[0])]
        return torch.full(seen.current.shape[:2], exits)


@pytest.fixture(scope="module")
def model():
    return nano()


def decoder_threshold(model, quantile: float = 0.75) -> float:
    """A threshold that lets some tokens exit at every depth."""
    model.configure_exits(None)
    with torch.no_grad():
        _, extra = model(**batch(4, target=10), return_layers=True)
    states = extra["layer_states"]
    cosines = torch.stack([hidden_saturation(a, b) for a, b in zip(states, states[1:])])
    return float(cosines.flatten().quantile(quantile))


def similarity(threshold: float) -> SimilarityExit:
    return SimilarityExit(2.0, 2.0, 2.0, threshold, schedule="static")


def slow_decode(model, net_input, tokens, exits):
    """Decode one hypothesis token by token, with keys and values of every layer as a dictionary.

    After a token exits at layer k, every deeper layer gets the self-attention K/V of layer k, of
    all positions so far, and its cross-attention K/V. A layer that a later token reaches attends
    to what it has been given, and to that token.

    Args:
        exits: (step, layer, input, output) -> whether the token exits after this layer.

    Returns:
        Log-probabilities of ``tokens``, and the layers that each used.
    """
    out = model.encoder(**{k: v for k, v in net_input.items() if k != "prev_output_tokens"})
    decoder = model.decoder
    depth = len(decoder.layers)
    self_kv: dict[int, list] = {}  # layer -> keys and values [1, heads, positions, d]
    cross_kv: dict[int, tuple] = {}
    prefix, scores, depths = [0], [], []
    for step, token in enumerate(tokens):
        state = decoder.layernorm_embedding(decoder.embed_tokens(torch.tensor([prefix[-1:]])))
        self_biases, cross_bias = decoder.biases(step + 1, out, None)
        for number, layer in enumerate(decoder.layers, start=1):
            own = layer.self_kv(state)
            earlier = self_kv.get(number)
            kv = [torch.cat(pair, 2) for pair in zip(earlier, own)] if earlier else list(own)
            assert kv[0].size(2) == step + 1
            self_kv[number] = kv
            if number not in cross_kv:
                cross_kv[number] = layer.encoder_attn.project_kv(out.states)
            new = layer(
                state,
                self_biases[number - 1][:, :, -1:],
                cross_kv[number],
                cross_bias[:, :, -1:],
                lambda key, value, kv=kv: tuple(kv),
            )
            leaves = number == depth or exits(step, number, state, new)
            state = new
            if leaves:
                break
        for deeper in range(number + 1, depth + 1):
            self_kv[deeper], cross_kv[deeper] = self_kv[number], cross_kv[number]
        logits = decoder.output_layer(decoder.layer_norm(state))[0, 0]
        scores.append(float(torch.log_softmax(logits, -1)[token]))
        depths.append(number)
        prefix.append(token)
    return torch.tensor(scores), depths


def decode(model, net_input):
    """Generate with beam 1: hypothesis and layers of its tokens, of each sentence."""
    found = generate(model, net_input, STEPS, beam_size=1, min_len=STEPS)
    depths = model.last_trace.depths([[h["tokens"].tolist() for h in hyps] for hyps in found])
    return [
        SimpleNamespace(tokens=h["tokens"].tolist(), scores=h["positional_scores"], depths=used)
        for (h,), (used,) in zip(found, depths, strict=True)
    ]


@pytest.mark.parametrize("quantile", [0.6, 0.75, 0.9])
@torch.no_grad()
def test_copy_equals_the_slow_loop(model, quantile):
    threshold, seen = decoder_threshold(model, quantile), set()
    for row in range(4):
        model.configure_exits(similarity(threshold), "copy")
        net_input = select(batch(4), row)
        (found,) = decode(model, net_input)
        model.configure_exits(None)
        scores, depths = slow_decode(
            model,
            net_input,
            found.tokens,
            lambda step, layer, previous, current: (
                float(hidden_saturation(previous, current)) > threshold
            ),
        )
        assert found.depths == depths and len(depths) == STEPS + 1
        torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=2e-4)
        seen |= set(depths)
    assert len(seen) > 2, "exits should be mixed"


@torch.no_grad()
def test_copies_of_copies_equal_the_slow_loop(model):
    net_input, found = select(batch(1), 0), {}
    for kv in KV_MODES:
        model.configure_exits(ByStep(), kv)
        (found[kv],) = decode(model, net_input)
        assert found[kv].depths == list(DEPTHS)
    scores, depths = slow_decode(
        model, net_input, found["copy"].tokens, lambda step, layer, *_: layer >= DEPTHS[step]
    )
    assert depths == list(DEPTHS)
    torch.testing.assert_close(found["copy"].scores, scores, rtol=1e-4, atol=2e-4)
    # Only copy is what the loop computes: the modes do differ on these depths.
    for kv in ("propagate", "recompute"):
        assert (found[kv].scores - found["copy"].scores).abs().max() > 0.01


@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_a_batch_gives_what_each_sentence_gives_alone(model):
    threshold = decoder_threshold(model)
    model.configure_exits(similarity(threshold), "copy")
    net_input = batch(6)
    together = decode(model, net_input)
    assert len({used for one in together for used in one.depths}) > 2, "exits should be mixed"
    for row, one in enumerate(together):
        (alone,) = decode(model, select(net_input, row))
        assert (alone.tokens, alone.depths) == (one.tokens, one.depths)
        torch.testing.assert_close(alone.scores, one.scores, rtol=1e-4, atol=2e-4)


@pytest.mark.usefixtures("reading")
@torch.no_grad()
def test_beams_run(model):
    """With several hypotheses, a sentence copies the layer that its deepest hypothesis reached."""
    model.configure_exits(similarity(decoder_threshold(model)), "copy")
    net_input = batch(4)
    found = generate(model, net_input, STEPS)
    tokens = [[h["tokens"].tolist() for h in hyps] for hyps in found]
    assert all(len(hyps) == 3 and h["score"].isfinite() for hyps in found for h in hyps)
    depths = model.last_trace.depths(tokens)
    assert len({used for hyps in depths for one in hyps for used in one}) > 2
    assert not any(step.kv_backfilled.any() for step in model.last_trace.steps)
    for row in range(4):
        (alone,) = generate(model, select(net_input, row), STEPS)
        assert [h["tokens"].tolist() for h in alone] == tokens[row]
        assert model.last_trace.depths([tokens[row]]) == [depths[row]]


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("policy", ["layer 1", "layer 3", "similarity"])
@torch.no_grad()
def test_sentences_that_finish_early_leave_the_others_alone(model, policy, monkeypatch):
    chosen = similarity(decoder_threshold(model))
    if policy != "similarity":  # a fixed depth is known without a look at the device
        chosen = StaticExit((6, 6, int(policy[-1])))
    model.configure_exits(chosen, "copy")
    net_input = batch(6)
    project, eos = model.decoder.output_projection, torch.zeros(VOCAB)
    monkeypatch.setattr(model.decoder, "output_layer", lambda features: project(features) + eos)
    for likely in torch.arange(0.0, 5.0, 0.25):  # until eos competes with the best words
        eos[2] = likely
        together = generate(model, net_input, 12)
        rows = {step.layers_used.size(0) for step in model.last_trace.steps}
        if len(rows) > 2:
            break
    assert len(rows) > 2, "the sentences should end at different steps"
    tokens = [[h["tokens"].tolist() for h in hyps] for hyps in together]
    depths = model.last_trace.depths(tokens)
    for row in range(6):
        (alone,) = generate(model, select(net_input, row), 12)
        assert [h["tokens"].tolist() for h in alone] == tokens[row]
        assert model.last_trace.depths([tokens[row]]) == [depths[row]]


@pytest.mark.parametrize("threshold", [1.0, 0.99999])  # without a gate, and with one
@torch.no_grad()
def test_without_exits_it_is_full_depth(model, threshold):
    net_input = batch(3)
    model.configure_exits(None)
    plain = generate(model, net_input)
    model.configure_exits(similarity(threshold), "copy")
    for hyps, others in zip(plain, generate(model, net_input), strict=True):
        for left, right in zip(hyps, others, strict=True):
            assert torch.equal(left["tokens"], right["tokens"])
            assert torch.equal(left["positional_scores"], right["positional_scores"])
    assert all((step.layers_used == 6).all() for step in model.last_trace.steps)


def test_unknown_modes_are_rejected(model):
    with pytest.raises(ValueError, match=r"lazy.*propagate, recompute, copy"):
        model.configure_exits(None, "lazy")

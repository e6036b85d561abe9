"""``--exit-kv copy`` against a loop written from its definition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.policy_oracle import slow_decode
from helpers.small_models import VOCAB, batch, generate, nano, select

from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.measures import hidden_saturation
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.kv_cache import KV_MODES

STEPS = 8
LAYERS = [1, 2, 3, 4, 5]  # before the last
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
    threshold, used = decoder_threshold(model, quantile), set()
    for row in range(4):
        model.configure_exits(similarity(threshold), "copy")
        net_input = select(batch(4), row)
        (found,) = decode(model, net_input)
        model.configure_exits(None)
        scores, depths = slow_decode(
            model,
            net_input,
            found.tokens,
            lambda: lambda seen: hidden_saturation(seen.previous, seen.state) > threshold,
            "copy",
            LAYERS,
        )
        assert found.depths == depths and len(depths) == STEPS + 1
        torch.testing.assert_close(found.scores, torch.tensor(scores), rtol=1e-4, atol=2e-4)
        used |= set(depths)
    assert len(used) > 2, "exits should be mixed"


@torch.no_grad()
def test_copies_of_copies_equal_the_slow_loop(model):
    net_input, found = select(batch(1), 0), {}
    for kv in KV_MODES:
        model.configure_exits(ByStep(), kv)
        (found[kv],) = decode(model, net_input)
        assert found[kv].depths == list(DEPTHS)
    tokens, rule = found["copy"].tokens, lambda seen: seen.number >= DEPTHS[seen.step]
    scores, depths = slow_decode(model, net_input, tokens, lambda: rule, "copy", LAYERS)
    assert depths == list(DEPTHS)
    torch.testing.assert_close(found["copy"].scores, torch.tensor(scores), rtol=1e-4, atol=2e-4)
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

"""Exits by CALM's confidences, under every schedule, against loops in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.policy_oracle import (
    HEADS,
    STEPS,
    check_answers,
    check_captions,
    check_incremental,
    check_never,
    layers_of,
    model_of,
)

from ofa_exit.policies.base import GateInput
from ofa_exit.policies.calm import MetaExit, SaturationExit, SoftmaxDiffExit, SoftmaxExit
from ofa_exit.policies.confidence import ConfidenceExit


def confidence(cls, layer) -> float:
    words = sorted((math.exp(log_p) for log_p in layer.words), reverse=True)
    if cls is SoftmaxExit:
        return words[0]
    if cls is SoftmaxDiffExit:
        return words[0] - words[1]
    if cls is MetaExit:
        return layer.learned
    return float(F.cosine_similarity(layer.previous.double(), layer.state.double(), dim=0))


def threshold(policy, layer, limit: int) -> float:
    """λ(t) of CALM's code, of MuE's paper, and of MuE's released code."""
    theta = policy.threshold
    theta = theta if isinstance(theta, float) else theta[layer.number - 1]
    if theta >= 1:
        return math.inf
    if policy.schedule == "calm":
        return 0.9 * theta + 0.1 * theta * math.exp(-policy.tau * layer.step / limit)
    if policy.schedule == "decay":
        decayed = policy.beta * theta + (1 - policy.beta) * math.exp(
            -policy.tau * layer.step / limit
        )
        return min(max(decayed, 0.0), 1.0)
    if policy.schedule == "official" and layer.step < (limit + 1) / 3:
        return math.inf
    if policy.schedule == "official":
        return 0.9 * theta + 0.1 * math.exp(-(layer.step + 1) / (limit + 1))
    return theta


def rule(policy, limit: int = STEPS):
    def exits(layer) -> bool:
        if type(policy) is SaturationExit and layer.number == 1:
            return False
        return confidence(type(policy), layer) >= threshold(policy, layer, limit)

    return lambda: exits


@torch.no_grad()
def limit_of(model, cls, part: float, layers=None) -> float:
    """A λ that a part of the confidences is below."""
    found = []

    class Watching(cls):
        def confidence(self, seen: GateInput):
            values = super().confidence(seen)
            if layers is None or seen.layer in layers:
                found.append(values.flatten())
            return values

    layers_of(model, Watching(0.9999999, "static"))
    return float(torch.cat(found).quantile(part))


CASES = [
    (SoftmaxExit, "none", "calm", "propagate"),
    (SoftmaxExit, "linear", "static", "recompute"),
    (SoftmaxExit, "imitation", "calm", "propagate"),
    (SoftmaxDiffExit, "none", "decay", "recompute"),
    (SoftmaxDiffExit, "transformer", "calm", "propagate"),
    (SoftmaxDiffExit, "adapter", "static", "recompute"),
    (SaturationExit, "none", "calm", "propagate"),
    (SaturationExit, "imitation", "static", "recompute"),
    (SaturationExit, "linear", "official", "recompute"),
    (MetaExit, "meta", "calm", "propagate"),
    (MetaExit, "meta", "static", "recompute"),
]


@pytest.mark.parametrize(("cls", "kind", "schedule", "kv"), CASES)
def test_captions(cls, kind, schedule, kv):
    model, heads = model_of(kind), HEADS[kind][1]
    policy = cls(limit_of(model, cls, 0.7), schedule)
    used = check_captions(model, policy, rule(policy), kv, heads)
    assert len(used) > 2 and used <= {*heads, 6}
    assert len(check_incremental(model, policy, kv)) > 1


@pytest.mark.parametrize(("cls", "kind", "schedule", "kv"), CASES)
def test_answers(cls, kind, schedule, kv):
    model, heads = model_of(kind), HEADS[kind][1]
    used = set()
    for theta in (0.3, 0.6, 0.8, 0.95):
        policy = cls(theta, "static")
        used |= check_answers(model, policy, rule(policy), kv, heads)
    assert len(used) > 1


@pytest.mark.parametrize("cls", [SoftmaxExit, SaturationExit])
def test_a_threshold_per_layer(cls):
    model = model_of("none")
    third, fifth = (limit_of(model, cls, 0.6, [layer]) for layer in (3, 5))
    policy = cls((1.0, 2.0, third, 1.0, fifth))
    used = check_captions(model, policy, rule(policy), "propagate", [1, 2, 3, 4, 5])
    assert used == {3, 5, 6}
    assert model.decoder.heads_in_use(policy) == [3, 5]


@pytest.mark.parametrize("cls", [SoftmaxExit, SoftmaxDiffExit, SaturationExit])
@pytest.mark.parametrize("schedule", ["calm", "static", "decay", "official"])
def test_one_never_exits_and_costs_nothing(cls, schedule):
    """Though schedules go below it."""
    check_never(model_of("transformer"), cls([1.0, 1, 1.5, 2, 1], schedule))


@pytest.mark.parametrize("cls", [SoftmaxExit, SoftmaxDiffExit, SaturationExit, MetaExit])
def test_raising_the_threshold_never_adds_an_exit(cls):
    model, before = model_of("meta"), torch.tensor(0)
    for theta in (0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0):
        layers = layers_of(model, cls(theta, "calm"))
        assert (layers >= before).all()
        before = layers
    assert set(before.unique().tolist()) <= {0, 6}


def test_softmax_without_a_schedule_is_blipees_confidence():
    for kind in ("none", "transformer"):
        model = model_of(kind)
        theta = limit_of(model, SoftmaxExit, 0.7)
        expected = layers_of(model, ConfidenceExit(theta))
        assert len(expected.unique()) > 2
        assert torch.equal(layers_of(model, SoftmaxExit(theta, "static")), expected)


def test_saturation_never_exits_after_layer_1():
    model = model_of("transformer")
    policy = SaturationExit(0.0, "static")
    assert model.decoder.heads_in_use(policy) == [2, 4]
    assert set(layers_of(model, policy).unique().tolist()) - {0} == {2}  # padding needs no layer
    with_first = layers_of(model, SoftmaxExit(0.0, "static"))
    assert set(with_first.unique().tolist()) - {0} == {1}


@torch.no_grad()
def test_meta_needs_heads_that_have_learned():
    model = model_of("transformer")
    with pytest.raises(RuntimeError, match="learned confidence follows layer 1"):
        layers_of(model, MetaExit(0.5))

"""Exits by entropy (DeeBERT) against loops in plain Python."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.policy_oracle import (
    COPY_CASES,
    HEADS,
    KV_CASES,
    WORD_HEADS,
    check_answers,
    check_captions,
    check_incremental,
    check_never,
    layers_of,
    model_of,
    quantile,
)

from ofa_exit.policies.entropy import EntropyExit
from ofa_exit.policies.measures import softmax_entropy


def rule(policy: EntropyExit):
    """Return what makes the rule of a token: -Σ p·ln p over its allowed words."""

    def exits(layer) -> bool:
        entropy = -sum(math.exp(log_p) * log_p for log_p in layer.words)
        if policy.normalized:
            entropy = entropy / math.log(len(layer.words)) if len(layer.words) > 1 else 0.0
        limits = policy.entropy
        return entropy < (limits if isinstance(limits, float) else limits[layer.number - 1])

    return lambda: exits


def limit_of(model, part: float, normalized: bool = False, layers=None) -> float:
    return quantile(model, partial(softmax_entropy, normalized=normalized), part, layers)


@pytest.mark.parametrize(("kind", "kv"), [*KV_CASES, *COPY_CASES])
def test_captions(kind, kv):
    model, heads, normalized = model_of(kind), HEADS[kind][1], kv == "recompute"
    policy = EntropyExit(limit_of(model, 0.3, normalized), normalized)
    used = check_captions(model, policy, rule(policy), kv, heads)
    assert len(used) > 2 and used <= {*heads, 6}
    if kv != "copy":  # one pass over given words copies nothing between them
        assert len(check_incremental(model, policy, kv)) > 1


@pytest.mark.parametrize(("kind", "kv"), KV_CASES)
def test_answers(kind, kv):
    model, heads, normalized = model_of(kind), HEADS[kind][1], kv == "propagate"
    used = set()
    for part in (0.2, 0.5, 0.7, 0.9):
        limit = part if normalized else part * math.log(2)
        policy = EntropyExit(limit, normalized)
        used |= check_answers(model, policy, rule(policy), kv, heads)
    assert len(used) > 1


def test_a_threshold_per_layer_over_some_heads():
    """Layers 1 and 3 have no head, or none that is tried; layer 4 never exits."""
    model = model_of("transformer")
    limit = limit_of(model, 0.3, layers=[2])
    policy = EntropyExit((9.0, limit, 9.0, 0.0, 9.0), layers=[2, 4])
    used = check_captions(model, policy, rule(policy), "propagate", [2, 4])
    assert used == {2, 6}
    assert model.decoder.active_heads(policy) == [2]


@pytest.mark.parametrize("kind", WORD_HEADS)
@pytest.mark.parametrize("never", [0, [0, 0.0, 0, 0, 0]])
def test_zero_never_exits_and_costs_nothing(kind, never):
    check_never(model_of(kind), EntropyExit(never))


@pytest.mark.parametrize("normalized", [False, True])
def test_raising_the_threshold_never_removes_an_exit(normalized):
    model = model_of("none")
    before = torch.tensor(6)
    for limit in (0.0, 0.3, 0.6, 0.8, 0.9, 1.1):
        limit = limit if normalized else limit * math.log(60)
        layers = layers_of(model, EntropyExit(limit, normalized))
        assert (layers <= before).all()
        before = layers
    assert set(before.unique().tolist()) <= {0, 1}  # padding needs no layer

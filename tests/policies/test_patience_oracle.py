"""Exits by patience (PABEE) against loops in plain Python."""

from __future__ import annotations

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
    layers_of,
    model_of,
)
from helpers.small_models import batch, generate

from ofa_exit.policies.patience import PatienceExit


def rule(policy: PatienceExit):
    """Return what makes the rule of a token: a word and a counter of its own."""

    def new():
        words: list[int] = []

        def exits(layer) -> bool:
            words.append(max(range(len(layer.words)), key=layer.words.__getitem__))
            if len(words) <= policy.patience:
                return False
            return len(set(words[-policy.patience - 1 :])) == 1

        return exits

    return new


@pytest.mark.parametrize(
    ("kind", "kv", "patience"),
    [
        *[(*case, 1) for case in KV_CASES + COPY_CASES],
        *[(kind, "propagate", 2) for kind in WORD_HEADS],
    ],
)
def test_captions(kind, kv, patience):
    model, heads = model_of(kind), HEADS[kind][1]
    policy = PatienceExit(patience)
    used = check_captions(model, policy, rule(policy), kv, heads)
    assert used <= {*heads[patience:], 6} and len(used) > 1
    if kv != "copy":  # one pass over given words copies nothing between them
        check_incremental(model, policy, kv)


@pytest.mark.parametrize(("kind", "kv"), KV_CASES)
def test_answers(kind, kv):
    model, heads, used = model_of(kind), HEADS[kind][1], set()
    for patience in (1, 2):
        policy = PatienceExit(patience)
        used |= check_answers(model, policy, rule(policy), kv, heads)
    assert len(used) > 1


def test_heads_that_are_not_tried_do_not_count():
    model = model_of("linear")
    policy = PatienceExit(1, layers=[2, 5])
    used = check_captions(model, policy, rule(policy), "propagate", [2, 5])
    assert used == {5, 6}


@pytest.mark.parametrize("kind", WORD_HEADS)
@torch.no_grad()
def test_a_patience_of_all_heads_is_full_depth(kind):
    """Bit for bit, and no head runs."""
    model, heads, net_input, ran = model_of(kind), len(HEADS[kind][1]), batch(3), []
    model.configure_exits(None)
    plain = generate(model, net_input)
    for module in model.decoder.exit_heads.modules():
        module.register_forward_hook(lambda *_: ran.append(1))
    model.configure_exits(PatienceExit(heads))
    found = generate(model, net_input)
    assert not model.decoder.heads_in_use(PatienceExit(heads)) and not ran
    for hyps, expected in zip(found, plain):
        for left, right in zip(hyps, expected):
            assert torch.equal(left["tokens"], right["tokens"])
            assert torch.equal(left["positional_scores"], right["positional_scores"])


def test_raising_the_patience_never_adds_an_exit():
    model, before = model_of("none"), torch.tensor(0)
    for patience in (1, 2, 3, 4, 5, 9):
        layers = layers_of(model, PatienceExit(patience))
        assert (layers >= before).all()
        exited = layers[(layers > 0) & (layers < 6)]
        assert (exited > patience).all()  # the first head has nothing to agree with
        before = layers
    assert set(before.unique().tolist()) <= {0, 6}

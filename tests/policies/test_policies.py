"""Fields of policies, their checks, and the decoder's threshold schedules."""

import math
from argparse import Namespace

import pytest
import torch

from ofa_exit.policies.base import ExitPolicy, GateInput, OptionError
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.registry import POLICIES, policy_options, register_policy
from ofa_exit.policies.schedules import NEVER, decayed_threshold, official_threshold
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit


def test_the_decay_is_the_papers():
    """Eq. 11 in plain Python."""
    steps, limits = torch.arange(5), torch.tensor([[5], [9]])
    found = decayed_threshold(0.9, steps, limits, 0.95, 2.0)
    for row, limit in enumerate((5, 9)):
        for step in range(5):
            expected = 0.95 * 0.9 + 0.05 * math.exp(-2.0 * step / limit)
            assert float(found[row, step]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 7, 17])
def test_the_official_schedule_waits_for_a_third_of_the_steps(limit):
    """No exit while t < (N + 1) / 3, counted as the released code does."""
    found = official_threshold(0.9, torch.arange(limit), torch.tensor([[limit]]), 0.95, 1.0)[0]
    for step in range(limit):
        if step < (limit + 1) / 3:
            assert found[step] == NEVER
        else:
            expected = 0.9 * 0.9 + 0.1 * math.exp(-(step + 1) / (limit + 1))
            assert float(found[step]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SimilarityExit(image_threshold=-0.1), "image_threshold"),
        (lambda: SimilarityExit(text_threshold=float("nan")), "text_threshold"),
        (lambda: SimilarityExit(decoder_threshold=float("inf")), "decoder_threshold"),
        (lambda: SimilarityExit(encoder_threshold=True), "encoder_threshold"),
        (lambda: SimilarityExit(beta=1.1), "beta"),
        (lambda: SimilarityExit(tau="1"), "tau"),
        (lambda: SimilarityExit(schedule="linear"), "schedule"),
        (lambda: ConfidenceExit(-0.5), "alpha"),
        (lambda: ConfidenceExit(0.5, [0]), "layers"),
        (lambda: StaticExit((1, 2)), "depths"),
        (lambda: StaticExit((1, 2, 3.0)), "depths"),
        (lambda: StaticExit("1,2,0"), "depths"),
        (lambda: StaticExit("1,2,3", use_exits="perhaps"), "use_exits"),
    ],
)
def test_fields_are_checked_where_they_enter(make, name):
    with pytest.raises(OptionError, match=name) as raised:
        make()
    assert raised.value.name == name


def test_texts_of_the_command_line_are_parsed():
    assert StaticExit("3, 2,1", "false") == StaticExit((3, 2, 1), False)
    assert ConfidenceExit(0.5, "2,4") == ConfidenceExit(0.5, [2, 4])


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        (ExitPolicy(), set()),
        (SimilarityExit(1.0, 2.0, 1.5, 1.0), set()),
        (SimilarityExit(0.9, 2.0, 2.0, 0.5), {"image", "decoder"}),
        (ConfidenceExit(0.5), {"decoder"}),
        (ConfidenceExit(1.0), set()),
        (StaticExit((1, 2, 3)), {"image", "text", "joint", "decoder"}),
    ],
)
def test_parts_where_nothing_exits_have_no_gate(policy, parts):
    assert {part for part in ("image", "text", "joint", "decoder") if policy.gate(part)} == parts


def test_thresholds_are_computed_once_per_step():
    states = torch.randn(3, 2, 8)
    seen = GateInput(states, states, 1, step=torch.arange(2), step_limit=torch.full((3, 1), 9))
    policy = SimilarityExit(decoder_threshold=0.9)
    assert policy.decoder_gate(seen).all()
    assert seen.memory["threshold"].shape == (3, 2)
    seen.memory["threshold"] = torch.full((3, 2), NEVER)
    assert not policy.decoder_gate(seen).any()


def test_registered_policies_are_dataclasses_with_a_name_of_their_own():
    class Plain(ExitPolicy):
        pass

    with pytest.raises(ValueError, match="dataclass"):
        register_policy("plain")(Plain)
    with pytest.raises(ValueError, match="'static'"):
        register_policy("static")(StaticExit)
    with pytest.raises(ValueError, match="'none'"):
        register_policy("none")(StaticExit)
    with pytest.raises(ValueError, match="Namespace"):
        register_policy("other")(Namespace)
    assert "plain" not in POLICIES


def test_every_option_explains_itself():
    for cls in POLICIES.values():
        for declared in policy_options(cls).values():
            assert declared.metadata["help"]

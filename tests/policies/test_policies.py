"""Fields of policies, their checks, and the decoder's threshold schedules."""

import math
from argparse import Namespace

import pytest
import torch

from ofa_exit.policies.base import ExitPolicy, GateInput, OptionError
from ofa_exit.policies.calm import MetaExit, SaturationExit, SoftmaxDiffExit, SoftmaxExit
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.entropy import EntropyExit
from ofa_exit.policies.patience import PatienceExit
from ofa_exit.policies.registry import POLICIES, policy_options, register_policy
from ofa_exit.policies.schedules import (
    NEVER,
    calm_threshold,
    decayed_threshold,
    official_threshold,
)
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


def test_calms_schedule_is_that_of_its_code():
    """And ``decay`` stays in [0, 1] without a clip; both in plain Python."""
    steps, limits = torch.arange(5), torch.tensor([[5], [9]])
    for theta in (0.0, 0.4, 0.99):
        code = calm_threshold(theta, steps, limits, 0.5, 4.0)
        decayed = decayed_threshold(theta, steps, limits, 0.9, 4.0)
        for row, limit in enumerate((5, 9)):
            for step in range(5):
                decay = math.exp(-4 * step / limit)
                expected = 0.9 * theta + 0.1 * theta * decay
                assert float(code[row, step]) == pytest.approx(expected, abs=1e-6)
                expected = min(max(0.9 * theta + 0.1 * decay, 0.0), 1.0)
                assert float(decayed[row, step]) == pytest.approx(expected, abs=1e-6)


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
        (lambda: EntropyExit(-0.1), "entropy"),
        (lambda: EntropyExit(0.1, "perhaps"), "normalized"),
        (lambda: EntropyExit(0.1, layers="1;2"), "layers"),
        (lambda: PatienceExit(0), "patience"),
        (lambda: PatienceExit(1.5), "patience"),
        (lambda: SoftmaxExit(-0.1), "threshold"),
        (lambda: SoftmaxDiffExit(schedule="linear"), "schedule"),
        (lambda: SaturationExit(beta=2), "beta"),
        (lambda: MetaExit(tau=-1), "tau"),
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
    assert EntropyExit("0.5,1", "true") == EntropyExit((0.5, 1.0), True)
    assert SoftmaxExit("0.5") == SoftmaxExit(0.5) != SoftmaxDiffExit(0.5)


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        (ExitPolicy(), set()),
        (SimilarityExit(1.0, 2.0, 1.5, 1.0), set()),
        (SimilarityExit(0.9, 2.0, 2.0, 0.5), {"image", "decoder"}),
        (ConfidenceExit(0.5), {"decoder"}),
        (ConfidenceExit(1.0), set()),
        (EntropyExit(0.5), {"decoder"}),
        (EntropyExit(0), set()),
        (PatienceExit(1), {"decoder"}),
        (SoftmaxExit(0.99), {"decoder"}),
        (SoftmaxDiffExit(1), set()),
        (SaturationExit(0.0), {"decoder"}),
        (MetaExit(2), set()),
        (StaticExit((1, 2, 3)), {"image", "text", "joint", "decoder"}),
    ],
)
def test_parts_where_nothing_exits_have_no_gate(policy, parts):
    assert {part for part in ("image", "text", "joint", "decoder") if policy.gate(part)} == parts


@pytest.mark.parametrize("policy", [SimilarityExit(decoder_threshold=0.9), SaturationExit(0.9)])
def test_thresholds_are_computed_once_per_step(policy):
    states = torch.randn(3, 2, 8)
    seen = gate_input(
        scores(SURE, SURE, SURE), current=states, previous=states, steps=torch.arange(2)
    )
    assert policy.decoder_gate(seen).all()
    (name,) = seen.memory
    assert seen.memory[name].shape == (3, 2)
    seen.memory[name] = torch.full((3, 2), NEVER)
    assert not policy.decoder_gate(seen).any()


# ------------------------------------------------------------------ gates over heads


def gate_input(logits=None, layer=1, memory=None, learned=None, steps=None, **states):
    """What a gate sees of three rows and two positions, with word scores [3, 2, V]."""
    steps = torch.zeros(2, dtype=torch.long) if steps is None else steps
    states = states or {"previous": torch.ones(3, 2, 4), "current": torch.ones(3, 2, 4)}
    return GateInput(
        layer=layer,
        step=steps,
        step_limit=torch.full((3, 1), 9),
        memory={} if memory is None else memory,
        score_words=None if logits is None else lambda fn: fn(logits.flatten(0, 1)).view(3, 2),
        learned_confidence=learned,
        **states,
    )


def scores(*rows):
    """Word scores [3, 2, V]: every row given stands at both positions."""
    return torch.tensor(rows)[:, None].expand(3, 2, -1)


NAN, INF = float("nan"), float("inf")
SURE, UNSURE, BROKEN = [9.0, 0.0, 0.0], [1.0, 1.0, 0.9], [9.0, NAN, 0.0]


@pytest.mark.parametrize(
    "policy",
    [
        ConfidenceExit(0.5),
        EntropyExit(0.1),
        EntropyExit(0.1, normalized=True),
        SoftmaxExit(0.5),
        SoftmaxDiffExit(0.5),
    ],
)
def test_sure_words_exit_and_broken_ones_never(policy):
    found = policy.decoder_gate(gate_input(scores(SURE, UNSURE, BROKEN)))
    assert found.tolist() == [[True, True], [False, False], [False, False]]
    assert policy.decoder_gate(gate_input()) is False  # no head
    half = policy.decoder_gate(gate_input(scores(SURE, UNSURE, BROKEN).half()))
    assert torch.equal(half, found)


def test_a_confidence_that_reaches_the_threshold_is_enough():
    """CALM compares by at least, BLIPEE and MuE by above."""
    two = torch.zeros(3, 2, 2)  # two words of probability 1/2
    assert SoftmaxExit(0.5, "static").decoder_gate(gate_input(two)).all()
    assert not ConfidenceExit(0.5).decoder_gate(gate_input(two)).any()
    assert SoftmaxDiffExit(0.0, "static").decoder_gate(gate_input(two)).all()


def test_entropy_counts_allowed_words_alone():
    closed = scores([0.0, -INF, -INF], [0.0, 0.0, -INF], [0.0, 0.0, 0.0])
    plain = EntropyExit(0.7).decoder_gate(gate_input(closed))
    assert plain[:, 0].tolist() == [True, True, False]  # 0, ln 2, ln 3
    normalized = EntropyExit(0.9, normalized=True).decoder_gate(gate_input(closed))
    assert normalized[:, 0].tolist() == [True, False, False]  # 0, 1, 1


def test_patience_counts_heads_that_agree_with_the_one_before():
    policy, memory, found = PatienceExit(2), {}, []
    a, b, c = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]
    words = [(a, b, c), (a, b, BROKEN), None, (a, c, BROKEN), (b, c, BROKEN), (b, c, c), (b, c, c)]
    for layer, rows in enumerate(words, start=1):
        logits = None if rows is None else scores(*rows)
        exits = policy.decoder_gate(gate_input(logits, layer, memory))
        found.append([False] * 3 if exits is False else exits[:, 0].tolist())
    assert [layer for layer, rows in enumerate(found, 1) if rows[0]] == [4, 7]
    assert [layer for layer, rows in enumerate(found, 1) if rows[1]] == [6, 7]
    assert [layer for layer, rows in enumerate(found, 1) if rows[2]] == []


def test_meta_compares_what_the_head_has_learned():
    seen = gate_input(
        scores(SURE, SURE, SURE), learned=lambda: torch.tensor([[0.2, 0.8], [0.9, NAN], [1.0, 0.0]])
    )
    found = MetaExit(0.8, "static").decoder_gate(seen)
    assert found.tolist() == [[False, True], [True, False], [True, False]]
    with pytest.raises(RuntimeError, match="learned confidence follows layer 1"):
        MetaExit(0.5).decoder_gate(gate_input(scores(SURE, SURE, SURE)))


def test_saturation_of_broken_states_is_none():
    states = torch.ones(3, 2, 4)
    states[1, 0, 2] = NAN
    found = SaturationExit(0.5).decoder_gate(
        gate_input(scores(SURE, SURE, SURE), previous=torch.ones(3, 2, 4), current=states)
    )
    assert found.tolist() == [[True, True], [False, True], [True, True]]


# ------------------------------------------------------------------ models that cannot follow


def arguments(**values):
    given = dict(encoder_layers=6, decoder_layers=6, split_modalities=True, exit_layers=None)
    return Namespace(**{**given, **values})


@pytest.mark.parametrize("heads", [None, "1,2,3,4,5", "all", "2,4"])
def test_a_patience_of_all_layers_is_rejected(heads):
    for patience in (1, 5):
        PatienceExit(patience).check(arguments(exit_layers=heads))
    with pytest.raises(ValueError, match=r"--exit-patience 6 never exits: .* 6 decoder layers"):
        PatienceExit(6).check(arguments(exit_layers=heads))


def test_a_patience_of_all_heads_is_full_depth():
    assert PatienceExit(4).select_heads([1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert PatienceExit(5).select_heads([1, 2, 3, 4, 5]) == []
    assert PatienceExit(1, layers=[4]).select_heads([1, 2, 3, 4, 5]) == []


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (ConfidenceExit, "alpha"),
        (EntropyExit, "entropy"),
        (SoftmaxExit, "threshold"),
        (MetaExit, "threshold"),
    ],
)
def test_lists_of_thresholds_fit_the_model(make, name):
    for heads in (None, "2,4"):  # numbers are those of layers, whatever heads there are
        make([0.5] * 5).check(arguments(exit_layers=heads))
        with pytest.raises(ValueError, match=rf"--exit-{name} gives 2 numbers.*6 decoder.*5"):
            make([0.5] * 2).check(arguments(exit_layers=heads))


@pytest.mark.parametrize("part", ["image", "text", "encoder", "decoder"])
def test_lists_of_similarities_fit_the_model(part):
    model = arguments(encoder_layers=4, decoder_layers=3)
    count = 2 if part == "decoder" else 3
    SimilarityExit(**{f"{part}_threshold": [0.5] * count}).check(model)
    with pytest.raises(ValueError, match=rf"--exit-{part}-threshold gives 5 numbers.*{count + 1}"):
        SimilarityExit(**{f"{part}_threshold": [0.5] * 5}).check(model)


@pytest.mark.parametrize("make", [ConfidenceExit, EntropyExit, PatienceExit, SoftmaxExit])
def test_every_policy_over_heads_can_try_some(make):
    policy = make(1, layers="2,4")
    policy.check(arguments())
    policy.check(arguments(exit_layers="1,2,4"))
    with pytest.raises(ValueError, match=r"--exit-active-layers 4: .*heads after layers 1,2"):
        policy.check(arguments(exit_layers="1,2"))
    assert set(policy.select_heads([1, 2, 3, 4])) <= {2, 4}


def test_parameters_belong_to_schedules():
    def check(schedule, *given, make=SoftmaxExit):
        policy = make(schedule=schedule)
        policy.given = given
        policy.check(arguments())

    check("calm", "tau")
    check("decay", "tau", "beta")
    check("calm", "tau", make=SimilarityExit)
    with pytest.raises(ValueError, match=r"--exit-beta belongs to --exit-schedule decay.* calm"):
        check("calm", "beta")
    with pytest.raises(ValueError, match=r"--exit-tau .*decay or calm.* official"):
        check("official", "tau")


def test_a_joint_encoder_has_one_depth():
    """From Python, too, where nobody calls check."""
    unequal = StaticExit((2, 3, 4))
    unequal.check(arguments())
    with pytest.raises(ValueError, match=r"--exit-depths 2,3,4.*equal"):
        unequal.check(arguments(split_modalities=False))
    with pytest.raises(ValueError, match=r"--exit-depths 2,3,4.*equal"):
        unequal.joint_gate(gate_input())


def test_defaults_depend_on_the_kind_of_task():
    assert EntropyExit.defaults("caption") == {} and EntropyExit().entropy == 0.5
    assert EntropyExit.defaults("answer") == {"entropy": 0.1}
    for make in (SoftmaxExit, SoftmaxDiffExit, SaturationExit, MetaExit):
        assert make(**make.defaults("caption")).schedule == "calm"
        assert make(**make.defaults("answer")).schedule == "static"
        assert (make().beta, make().tau) == (0.9, 4.0)


# ------------------------------------------------------------------ the registry


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

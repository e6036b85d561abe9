"""The learned gate against loops in plain Python: captions, answers, batches, beams, K/V modes."""

from __future__ import annotations

import math
from argparse import Namespace

import pytest
import torch
from helpers.gate_files import WEIGHTS, gate_file, gate_for, write_gate
from helpers.policy_oracle import (
    STEPS,
    check_answers,
    check_captions,
    check_incremental,
    check_never,
    layers_of,
    model_of,
)
from helpers.small_models import batch, generate

from ofa_exit.policies.base import ExitPolicy, GateInput, OptionError
from ofa_exit.policies.learned import LearnedExit
from ofa_exit.policies.measures import log_norms, log_step

LAYERS = [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A gate for the small model."""
    return write_gate(tmp_path_factory.mktemp("gate") / "gate.json", gate_for(model_of("none")))


def probability(gate, layer) -> float:
    """p_i of one token from the definition, in float64."""
    before, after = layer.previous.double().tolist(), layer.state.double().tolist()
    norms = [math.sqrt(sum(x * x for x in state)) for state in (before, after)]
    change = math.sqrt(sum((y - x) ** 2 for x, y in zip(before, after)))
    features = {
        "change": math.log(max(change, 1e-5)),
        "before": math.log(norms[0]),
        "after": math.log(norms[1]),
        "step": math.log(1 + layer.step),
    }
    own = gate.layers[layer.number - 1]
    logit = own["bias"]
    for number, name in enumerate(gate.features):
        scaled = (features[name] - own["mean"][number]) / own["scale"][number]
        logit += own["weights"][number] * scaled
    return 1 / (1 + math.exp(-logit))


def threshold(policy, layer, limit: int) -> float:
    theta = policy.gate_confidence
    theta = theta if isinstance(theta, float) else theta[layer.number - 1]
    if theta >= 1:
        return math.inf
    if policy.schedule == "decay":
        return policy.beta * theta + (1 - policy.beta) * math.exp(-policy.tau * layer.step / limit)
    if policy.schedule == "calm":
        return 0.9 * theta + 0.1 * theta * math.exp(-policy.tau * layer.step / limit)
    return theta


def rule(policy, limit: int = STEPS):
    def exits(layer) -> bool:
        return probability(policy._gate, layer) >= threshold(policy, layer, limit)

    return lambda: exits


@pytest.mark.parametrize("schedule", ["static", "decay", "calm"])
@pytest.mark.parametrize("kv", ["propagate", "recompute", "copy"])
def test_captions(path, schedule, kv):
    policy, model = LearnedExit(path, 0.62, schedule=schedule), model_of("none")
    used = check_captions(model, policy, rule(policy), kv, LAYERS)
    assert len(used) > 2 and used <= {*LAYERS, 6}
    if kv != "copy":  # whole sequences have no cache to copy
        assert len(check_incremental(model, policy, kv)) > 1


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_answers(path, kv):
    model, used = model_of("none"), set()
    for theta in (0.4, 0.6, 0.7):
        policy = LearnedExit(path, theta)
        used |= check_answers(model, policy, rule(policy), kv, LAYERS)
    assert len(used) > 1


def test_a_threshold_per_layer(path):
    model, policy = model_of("none"), LearnedExit(path, [1, 2.0, 0.5, 1.0, 0.4])
    used = check_captions(model, policy, rule(policy), "propagate", LAYERS)
    assert used == {3, 5, 6}


def test_one_never_exits_and_costs_nothing(path):
    check_never(model_of("transformer"), LearnedExit(path, [1.0, 1, 1.5, 2, 1], schedule="calm"))


def test_raising_the_threshold_never_adds_an_exit(path):
    model, before = model_of("none"), torch.tensor(0)
    for theta in (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0):
        layers = layers_of(model, LearnedExit(path, theta))
        assert (layers >= before).all()
        before = layers
    assert set(before.unique().tolist()) <= {0, 6}


@torch.no_grad()
def test_no_head_runs_and_no_words_are_scored(path, monkeypatch):
    """Not even where the model has trained heads."""
    model, policy = model_of("linear"), LearnedExit(path, 0.62)
    assert model.decoder.heads_in_use(policy) == []
    monkeypatch.setattr(GateInput, "scores", None)
    model.configure_exits(policy)
    generate(model, batch(3))
    steps = model.last_trace.steps
    assert min(int(step.layers_used.min()) for step in steps) < 6
    for step in steps:
        # The vocabulary is paid for once per word, as at full depth.
        (paid,), (full,) = (
            [work for work in part if work.part == "vocabulary"]
            for part in (step.work, step.full_work)
        )
        assert list(paid.units) == list(full.units)


@torch.no_grad()
@pytest.mark.parametrize(("split", "options"), [(True, "image"), (True, "text"), (False, "joint")])
def test_the_encoder_exits_by_cosine(path, split, options):
    """And in full without its thresholds."""
    from helpers.small_models import nano

    name = "encoder_threshold" if options == "joint" else f"{options}_threshold"
    plain, cosine = LearnedExit(path), LearnedExit(path, **{name: 0.0})
    assert plain.gate(options) is None and cosine.gate(options) is not None
    model, found = nano(split), []
    for policy in (plain, cosine):
        model.configure_exits(policy)
        model(**batch(2))
        trace = model.last_trace
        layers = trace.text_layers if options == "text" else trace.image_layers
        found.append(layers.tolist())
    assert found[0] == [6, 6] and max(found[1]) < 6


def test_features_are_free_of_the_batch_and_of_half_precision():
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(2, 3, 2, 16, generator=generator)
    assert log_norms(*states.half()).dtype == log_step(torch.arange(2)).dtype == torch.float32
    alone = log_norms(*(state[1:2] for state in states))
    assert torch.equal(alone, log_norms(*states)[:, 1:2])


def test_the_cosine_and_the_ratio_follow_from_the_norms():
    generator = torch.Generator().manual_seed(4)
    before, after = torch.randn(2, 3, 16, generator=generator)
    change, first, second = log_norms(before, after).exp()
    cosine = (first**2 + second**2 - change**2) / (2 * first * second)
    torch.testing.assert_close(cosine, torch.cosine_similarity(before, after, dim=-1))


def test_broken_and_equal_states(path):
    states = torch.ones(3, 1, 32)
    states[1, 0, 2] = math.nan
    seen = GateInput(
        torch.ones(3, 1, 32), states, 1, step=torch.zeros(1).long(), step_limit=torch.ones(3, 1)
    )
    policy = LearnedExit(path, 0.0)
    found = policy.decoder_gate(seen)
    assert found.flatten().tolist() == [True, False, True]
    assert policy.confidence(seen)[[0, 2]].isfinite().all()
    zeros = {"previous": torch.zeros(3, 1, 32), "current": torch.zeros(3, 1, 32)}
    assert policy.confidence(GateInput(**zeros, layer=1, step=seen.step)).isfinite().all()


# ------------------------------------------------------------------ fields


def test_the_numbers_of_a_scaled_feature(tmp_path):
    gate = gate_file(1)
    gate.layers[0].update(mean=[1.0, 2, 3, 4], scale=[2.0, 4, 5, 10], bias=0.5)
    weights, bias = gate.coefficients(1)
    assert weights == pytest.approx([w / s for w, s in zip(WEIGHTS[0], (2, 4, 5, 10))])
    expected = 0.5 - sum(w * m for w, m in zip(weights, (1, 2, 3, 4)))
    assert bias == pytest.approx(expected)


def test_models_that_cannot_follow(path):
    model = Namespace(encoder_layers=6, decoder_layers=6, split_modalities=True)
    LearnedExit(path, [0.5] * 5).check(model)
    with pytest.raises(ValueError, match=r"--exit-gate-confidence gives 2 numbers.*6 decoder"):
        LearnedExit(path, [0.5, 0.5]).check(model)
    model.decoder_layers = 4
    with pytest.raises(ValueError, match=r"--exit-gate .* fitted on 6 decoder layers.*model has 4"):
        LearnedExit(path).check(model)
    model.decoder_layers, policy = 6, LearnedExit(path, encoder_threshold=0.9)
    policy.given = {"encoder_threshold"}
    with pytest.raises(ValueError, match="--exit-encoder-threshold is for a joint encoder"):
        policy.check(model)
    policy = LearnedExit(path, tau=2.0)
    policy.given = {"tau"}
    with pytest.raises(ValueError, match="--exit-tau belongs to"):
        policy.check(model)


@pytest.mark.parametrize("name", [7, "", "a\0b", None, True])
def test_the_gate_is_a_path(name):
    with pytest.raises(OptionError, match="must be the path of a file"):
        LearnedExit(name)


def test_the_origin_is_the_files(path):
    origin = LearnedExit(path).origin
    assert origin.option == f"--exit-gate {path}" and origin.checkpoint["sha256"] == "0" * 64
    assert origin.task["kind"] == "caption" and len(origin.digest) == 64
    assert ExitPolicy().origin is None

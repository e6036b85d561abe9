"""Options on when to exit: the policies that they build, and what is rejected."""

import json
from argparse import ArgumentParser

import pytest
from fairseq.dataclass.utils import gen_parser_from_dataclass
from helpers.gate_files import write_gate
from helpers.small_models import nano

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.options import (
    ExitFlags,
    build_exit_policy,
    policy_flags,
    reject_misfit,
)
from ofa_exit.policies.calm import SaturationExit
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.entropy import EntropyExit
from ofa_exit.policies.patience import PatienceExit
from ofa_exit.policies.registry import POLICIES, policy_options
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit


def flags(**options):
    return ExitFlags(**{f"exit_{name}": value for name, value in options.items()})


def policy_of(task="caption", **options):
    return build_exit_policy(flags(**options), task)


# ---------------------------------------------------------------------- values


def test_no_policy_without_flags():
    assert policy_of() is None
    assert policy_of(trace="trace.json") is None


def test_defaults_are_the_papers():
    policy = policy_of(policy="similarity")
    assert policy == SimilarityExit(0.9, 0.95, policy.encoder_threshold, 0.99, "decay", 0.95, 1.0)
    assert policy.gate("joint") is None and policy.gate("image") is not None
    answers = policy_of("answer", policy="similarity")
    assert (answers.decoder_threshold, answers.schedule) == (0.95, "static")
    assert (answers.image_threshold, answers.text_threshold) == (0.9, 0.95)
    given = policy_of(policy="similarity", decoder_threshold=0.5, beta=0.1)
    assert (given.decoder_threshold, given.beta, given.schedule) == (0.5, 0.1, "decay")


def test_depths_and_json():
    assert policy_of(policy="static", depths="3, 2,1") == StaticExit((3, 2, 1))
    assert policy_of(policy="static", depths="3,2,1", use_exits="false").use_exits is False
    assert policy_of(policy="similarity", options='{"tau": 2}').tau == 2
    layers = policy_of(policy="confidence", alpha=0.5, options='{"layers": [2, 4]}')
    assert layers == ConfidenceExit(0.5, [2, 4])


def test_thresholds_per_layer_are_read_from_texts_lists_and_json():
    wanted = SimilarityExit(decoder_threshold=(0.99, 0.97, 0.95, 0.9, 1.0))
    for given in ("0.99,0.97,0.95,0.9,1", [0.99, 0.97, 0.95, 0.9, 1]):
        assert policy_of(policy="similarity", decoder_threshold=given) == wanted
    text = '{"decoder_threshold": [0.99, 0.97, 0.95, 0.9, 1]}'
    assert policy_of(policy="similarity", options=text) == wanted
    assert policy_of(policy="entropy", entropy="0.5").entropy == 0.5
    assert policy_of(policy="softmax", threshold="0.9,0.8").threshold == (0.9, 0.8)
    with pytest.raises(UsageError, match=r"--exit-alpha must be a number.*'0.9;0.8'"):
        policy_of(policy="confidence", alpha="0.9;0.8")


def parsed(*arguments):
    """Options as a command line gives them."""
    parser = ArgumentParser()
    gen_parser_from_dataclass(parser, ExitFlags())
    return build_exit_policy(parser.parse_args(arguments), "caption")


def test_the_command_line_takes_lists_and_switches():
    policy = parsed(
        *("--exit-policy", "entropy", "--exit-entropy", "0.5,0.4", "--exit-normalized"),
        *("--exit-active-layers", "1,2"),
    )
    assert policy == EntropyExit((0.5, 0.4), True, [1, 2])
    assert policy.given == {"entropy", "normalized", "layers"}
    assert parsed("--exit-policy", "entropy").normalized is False
    policy = parsed("--exit-policy", "saturation", "--exit-threshold", "0.9", "--exit-tau", "2")
    assert policy == SaturationExit(0.9, tau=2.0)
    assert parsed("--exit-policy", "patience", "--exit-patience", "3") == PatienceExit(3)


def test_policies_share_flags_of_one_meaning():
    shown = {name: own.help for name, own in policy_flags().items()}
    assert shown["exit_tau"].endswith(
        "(--exit-policy similarity, softmax, softmax_diff, saturation, meta, learned)"
    )
    assert "(--exit-policy confidence, entropy, patience, softmax" in shown["exit_active_layers"]
    assert shown["exit_entropy"].endswith("(--exit-policy entropy)")


def test_defaults_of_the_baselines():
    assert policy_of(policy="entropy") == EntropyExit(0.5)
    assert policy_of("answer", policy="entropy") == EntropyExit(0.1)
    assert policy_of(policy="patience") == PatienceExit(2)
    for name in ("softmax", "softmax_diff", "saturation", "meta"):
        policy = policy_of(policy=name)
        assert (policy.threshold, policy.schedule, policy.tau) == (0.9, "calm", 4.0)
        assert policy_of("answer", policy=name).schedule == "static"


def test_a_field_may_have_a_flag_of_another_name():
    policy = policy_of(policy="confidence", active_layers="2,4")
    assert policy == ConfidenceExit(layers=[2, 4]) and policy.given == {"layers"}
    assert not hasattr(flags(), "exit_layers")  # that is the model's: which layers have heads
    with pytest.raises(UsageError, match=r"--exit-active-layers.*'2;4'"):
        policy_of(policy="confidence", active_layers="2;4")


# ---------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "task", "image", "text", "decoder", "schedule"),
    [
        ("mue-released", "caption", 0.99, 0.7, 0.9, "official"),
        ("mue-released", "answer", 0.7, 0.99, 0.7, "static"),
        ("mue-paper", "caption", 0.9, 0.95, 0.99, "decay"),
        ("mue-paper", "answer", 0.9, 0.95, 0.95, "static"),
    ],
)
def test_presets(preset, task, image, text, decoder, schedule):
    for options in ({}, {"policy": "similarity"}):
        policy = policy_of(task, preset=preset, **options)
        assert isinstance(policy, SimilarityExit) and not policy.given
        assert (policy.image_threshold, policy.text_threshold) == (image, text)
        assert (policy.decoder_threshold, policy.schedule) == (decoder, schedule)


def test_flags_beside_a_preset_win():
    policy = policy_of(preset="mue-released", text_threshold=0.5, options='{"schedule": "static"}')
    assert (policy.image_threshold, policy.text_threshold) == (0.99, 0.5)
    assert (policy.decoder_threshold, policy.schedule) == (0.9, "static")
    assert policy.given == {"text_threshold", "schedule"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "mue"}, r"--exit-preset 'mue'.*mue-paper, mue-released"),
        (
            {"preset": "mue-paper", "policy": "static", "depths": "1,1,1"},
            r"--exit-preset mue-paper.*--exit-policy similarity.*static",
        ),
        ({"preset": "mue-paper", "depths": "1,1,1"}, r"similarity.*--exit-depths"),
    ],
)
def test_presets_are_of_a_policy(options, message):
    with pytest.raises(UsageError, match=message):
        policy_of(**options)


# ---------------------------------------------------------------------- bounds


def numbers():
    """(policy, field, lowest, highest) of every numeric field of the policies."""
    for policy, cls in POLICIES.items():
        for name, declared in policy_options(cls).items():
            if isinstance(declared.default, (int, float)) and type(declared.default) is not bool:
                rules = declared.metadata
                yield policy, name, rules["at_least"], rules["at_most"]


def test_every_number_has_bounds():
    assert {(name, low, high) for _, name, low, high in numbers()} == {
        ("image_threshold", 0, None),
        ("text_threshold", 0, None),
        ("encoder_threshold", 0, None),
        ("decoder_threshold", 0, None),
        ("beta", 0, 1),
        ("tau", 0, None),
        ("alpha", 0, None),
        ("entropy", 0, None),
        ("patience", 1, None),
        ("threshold", 0, None),
        ("gate_confidence", 0, None),
    }


@pytest.mark.parametrize(("policy", "name", "low", "high"), list(numbers()))
def test_bounds_of_numbers(policy, name, low, high, tmp_path):
    flag = "--exit-" + name.replace("_", "-")
    needed = {"gate": write_gate(tmp_path / "gate.json")} if policy == "learned" else {}
    whole = name == "patience"
    inside = [low, low + (1 if whole else 0.5)] if high is None else [low, high]
    for value in inside:
        assert getattr(policy_of(policy=policy, **needed, **{name: value}), name) == value
    outside = [low - 0.01, float("nan"), float("inf"), -float("inf")]
    for value in outside if high is None else [*outside, high + 0.01]:
        with pytest.raises(UsageError, match=rf"{flag}\b.*{low}.*{value}"):
            policy_of(policy=policy, **needed, **{name: value})
    per_layer = policy_options(POLICIES[policy])[name].metadata["parse"] is not None
    for value in ("a", True, None, [], ["1"], *(() if per_layer else ("0.5", [1]))):
        with pytest.raises(UsageError, match=rf"{flag}\b"):
            policy_of(policy=policy, **needed, options=json.dumps({name: value}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_threshold": 0.9}, r"--exit-image-threshold without.*--exit-policy similarity"),
        ({"kv": "propagate"}, r"--exit-kv without.*--exit-policy"),
        ({"options": '{"tau": 1}'}, r"--exit-options without.*--exit-policy"),
        ({"schedule": "decay", "depths": "1,1,1"}, r"(?=.*--exit-schedule)(?=.*--exit-depths)"),
        ({"policy": "learned"}, r"--exit-policy learned needs --exit-gate GATE.json"),
        (
            {"policy": "learned", "gate": "none.json"},
            r"--exit-gate none.json cannot be read: No such file",
        ),
        ({"gate": "gate.json"}, r"--exit-gate without.*--exit-policy learned"),
        ({"gate_confidence": "0.9"}, r"--exit-gate-confidence without.*--exit-policy learned"),
        ({"policy": "similar"}, r"--exit-policy 'similar'.*none, similarity, static, confidence"),
        ({"policy": "similarity", "schedule": "linear"}, r"--exit-schedule 'linear'.*decay"),
        (
            {"policy": "similarity", "encoder_similarity": "max"},
            r"--exit-encoder-similarity 'max'.*sample, token_mean",
        ),
        ({"policy": "similarity", "kv": "guess"}, r"--exit-kv 'guess'.*propagate, recompute, copy"),
        ({"policy": "similarity", "depths": "1,1,1"}, r"similarity.*--exit-depths"),
        ({"policy": "static"}, r"static.*--exit-depths IMAGE,TEXT,DECODER"),
        ({"policy": "static", "depths": "1,1"}, r"--exit-depths '1,1'"),
        ({"policy": "static", "depths": "0,1,1"}, r"--exit-depths '0,1,1'"),
        ({"policy": "static", "depths": "a,1,1"}, r"--exit-depths 'a,1,1'"),
        ({"policy": "static", "depths": "1,1.5,1"}, r"--exit-depths '1,1.5,1'"),
        (
            {"policy": "static", "depths": "1,1,1", "use_exits": "perhaps"},
            r"--exit-use-exits.*'perhaps'",
        ),
        (
            {"policy": "static", "depths": "1,1,1", "image_threshold": 0.5},
            r"static.*--exit-image-threshold.*--exit-depths",
        ),
        ({"policy": "similarity", "options": "{"}, r"--exit-options '{'.*JSON"),
        ({"policy": "similarity", "options": "[1]"}, r"--exit-options '\[1\]'.*JSON object"),
        ({"policy": "similarity", "options": '{"patience": 1}'}, r"similarity.*'patience'.*tau"),
        (
            {"policy": "similarity", "options": '{"tau": 1}', "tau": 1.0},
            r"--exit-options.*\btau\b.*--exit-tau",
        ),
        ({"policy": "similarity", "trace": "no/such/folder/t"}, r"--exit-trace 'no/such/folder/t'"),
        ({"trace": "."}, r"--exit-trace '\.'"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(UsageError, match=message):
        policy_of(**options)


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        (
            True,
            {"policy": "similarity", "encoder_threshold": 0.9},
            r"--exit-encoder-threshold.*--split-modalities.*--exit-image-threshold",
        ),
        (
            False,
            {"policy": "similarity", "image_threshold": 0.9},
            r"--exit-image-threshold.*--split-modalities.*--exit-encoder-threshold",
        ),
        (
            False,
            {"policy": "similarity", "text_threshold": 0.9},
            r"--exit-text-threshold.*--split-modalities.*--exit-encoder-threshold",
        ),
        (True, {"policy": "similarity", "schedule": "static", "tau": 2.0}, r"--exit-tau.*static"),
        (True, {"policy": "static", "depths": "7,1,1"}, r"--exit-depths 7,1,1.*6 encoder.*6 dec"),
        (True, {"policy": "static", "depths": "1,1,7"}, r"--exit-depths 1,1,7.*6 encoder.*6 dec"),
        (False, {"policy": "static", "depths": "1,2,3"}, r"--exit-depths 1,2,3.*equal"),
        (
            True,
            {"policy": "confidence", "active_layers": "6"},
            r"--exit-active-layers 6.*1,2,3,4,5",
        ),
        (True, {"policy": "patience", "patience": 6}, r"--exit-patience 6 never exits.*6 decoder"),
        (True, {"policy": "entropy", "entropy": "1,2"}, r"--exit-entropy gives 2 numbers.*or 5"),
        (True, {"policy": "meta"}, r"--exit-policy meta.*no --exit-layers.*--exit-head meta"),
    ],
)
def test_what_the_model_lacks_is_rejected(split, options, message):
    cfg = flags(**options)
    policy = build_exit_policy(cfg, "caption")
    with pytest.raises(UsageError, match=message):
        reject_misfit(cfg, policy, nano(split))


def test_what_the_model_has_is_accepted():
    for split, options in (
        (True, {"policy": "similarity", "image_threshold": 1.0, "text_threshold": 2.0}),
        (False, {"policy": "similarity", "encoder_threshold": 0.9}),
        (False, {"policy": "similarity"}),
        (False, {"preset": "mue-released"}),
        (True, {"policy": "static", "depths": "6,1,6"}),
        (False, {"policy": "static", "depths": "2,2,3"}),
        (True, {"policy": "similarity", "image_threshold": "1,1,1,1,0.9"}),
        (True, {"policy": "confidence"}),  # heads are shared
        (True, {"policy": "entropy", "entropy": "0,0,0.1,0.2,0.3"}),
        (True, {"policy": "patience", "patience": 5}),
        (True, {"policy": "softmax", "active_layers": "2,4"}),
    ):
        cfg = flags(**options)
        reject_misfit(cfg, build_exit_policy(cfg, "caption"), nano(split))
    reject_misfit(ExitFlags(), None, object())  # full depth needs no exits


def test_active_layers_are_heads_of_the_model():
    model = nano(exit_layers="2,4")
    for layers in ("2", "4,2"):
        cfg = flags(policy="confidence", active_layers=layers)
        reject_misfit(cfg, build_exit_policy(cfg, "caption"), model)
    cfg = flags(policy="confidence", active_layers="2,3")
    with pytest.raises(UsageError, match=r"--exit-active-layers 3\b.*2,4"):
        reject_misfit(cfg, build_exit_policy(cfg, "caption"), model)


def test_options_of_confidence():
    def confidence(**options):
        return policy_of(policy="confidence", **options)

    assert confidence().alpha == 0.8
    assert confidence(alpha=0.5).alpha == 0.5
    with pytest.raises(UsageError, match="--exit-alpha"):
        confidence(alpha=-0.1)
    with pytest.raises(UsageError, match=r"similarity.*--exit-alpha"):
        policy_of(policy="similarity", alpha=0.5)
    with pytest.raises(UsageError, match=r"--exit-alpha without.*--exit-policy confidence"):
        policy_of(policy="none", alpha=0.5)
    policy = confidence(options='{"layers": [2, 4]}')
    reject_misfit(flags(), policy, nano(exit_layers="1,2,4"))
    with pytest.raises(UsageError, match=r"--exit-active-layers 4\b.*after layers 1,2"):
        reject_misfit(flags(), policy, nano(exit_layers="1,2"))
    for wrong in ("[]", "2", '["2"]', "[0]", "[true]"):
        with pytest.raises(UsageError, match=r"--exit-active-layers\b.*list"):
            confidence(options=f'{{"layers": {wrong}}}')


def test_meta_needs_heads_with_a_learned_confidence():
    cfg = flags(policy="meta")
    policy = build_exit_policy(cfg, "caption")
    reject_misfit(cfg, policy, nano(exit_layers="2,4", exit_head="meta"))
    for kind in ("transformer", "shared", "linear"):
        message = rf"--exit-policy meta needs.*--exit-head {kind}:.*--exit-head meta"
        with pytest.raises(UsageError, match=message):
            reject_misfit(cfg, policy, nano(exit_layers="2,4", exit_head=kind))


def test_copy_is_for_models_without_heads():
    cfg = flags(policy="similarity", kv="copy")
    policy = build_exit_policy(cfg, "caption")
    plain, headed = nano(), nano(exit_layers="2")
    reject_misfit(cfg, policy, plain)
    plain.configure_exits(policy, cfg.exit_kv)
    assert plain.decoder.kv_mode == "copy"
    with pytest.raises(UsageError, match=r"--exit-kv copy.*propagate.*recompute.*--exit-layers"):
        reject_misfit(cfg, ConfidenceExit(0.5), headed)
    reject_misfit(cfg, policy, headed)  # similarity uses none of the heads
    with pytest.raises(ValueError, match=r"--exit-kv copy.*propagate.*recompute"):
        headed.configure_exits(ConfidenceExit(0.5), "copy")
    for kv in ("propagate", "recompute"):
        reject_misfit(flags(policy="similarity", kv=kv), policy, headed)


def test_other_models_have_no_exits():
    cfg = flags(policy="similarity")
    with pytest.raises(UsageError, match=r"--exit-policy.*\bobject\b"):
        reject_misfit(cfg, build_exit_policy(cfg, "caption"), object())

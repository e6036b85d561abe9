"""Options on when to exit: what they build, and what is refused."""

from argparse import ArgumentParser

import pytest
from fairseq.dataclass.utils import gen_parser_from_dataclass
from helpers.small_models import nano

from ofa_exit.plugin.options import ExitFlags, exit_policy, refuse_misfit
from ofa_exit.policies.base import ExitPolicy
from ofa_exit.policies.registry import POLICIES, register_policy
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

CAPTION = {"decoder_threshold": 0.99, "schedule": "decay"}


def flags(**options):
    return ExitFlags(**{f"exit_{name}": value for name, value in options.items()})


def test_no_policy_without_flags():
    assert exit_policy(ExitFlags(), CAPTION) is None
    assert exit_policy(flags(trace="trace.json"), CAPTION) is None


def test_defaults_are_the_papers():
    policy = exit_policy(flags(policy="similarity"), CAPTION)
    assert policy == SimilarityExit(0.9, 0.95, policy.encoder_threshold, 0.99, "decay", 0.95, 1.0)
    assert policy.joint_gate() is None
    given = exit_policy(flags(policy="similarity", decoder_threshold=0.5, beta=0.1), CAPTION)
    assert (given.decoder_threshold, given.beta, given.schedule) == (0.5, 0.1, "decay")


def test_depths_and_json():
    assert exit_policy(flags(policy="static", depths="3, 2,1"), {}) == StaticExit((3, 2, 1))
    policy = exit_policy(flags(policy="similarity", options='{"tau": 2}'), CAPTION)
    assert policy.tau == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_threshold": 0.9}, "--exit-image-threshold without an exit policy"),
        ({"kv": "propagate"}, "--exit-kv without an exit policy"),
        ({"schedule": "decay", "depths": "1,1,1"}, "--exit-schedule, --exit-depths without"),
        ({"policy": "similar"}, "none, static, similarity"),
        ({"policy": "similarity", "image_threshold": -0.1}, "--exit-image-threshold"),
        ({"policy": "similarity", "text_threshold": float("nan")}, "--exit-text-threshold"),
        ({"policy": "similarity", "decoder_threshold": float("inf")}, "--exit-decoder-threshold"),
        ({"policy": "similarity", "tau": -1.0}, "--exit-tau"),
        ({"policy": "similarity", "beta": 1.5}, "beta"),
        ({"policy": "similarity", "schedule": "linear"}, "schedule 'linear'"),
        ({"policy": "similarity", "encoder_similarity": "max"}, "similarity 'max'"),
        ({"policy": "similarity", "kv": "guess"}, "--exit-kv 'guess'"),
        ({"policy": "similarity", "depths": "1,1,1"}, "does not take --exit-depths"),
        ({"policy": "static"}, "needs --exit-depths"),
        ({"policy": "static", "depths": "1,1"}, "three whole numbers"),
        ({"policy": "static", "depths": "0,1,1"}, "three whole numbers"),
        ({"policy": "static", "depths": "a,1,1"}, "three whole numbers"),
        (
            {"policy": "static", "depths": "1,1,1", "image_threshold": 0.5},
            "does not take --exit-image-threshold",
        ),
        ({"policy": "similarity", "options": "{"}, "is not JSON"),
        ({"policy": "similarity", "options": "[1]"}, "JSON object"),
        ({"policy": "similarity", "options": '{"patience": 1}'}, "option 'patience'"),
        ({"policy": "similarity", "options": '{"tau": 1}', "tau": 1.0}, "so does --exit-tau"),
        ({"policy": "similarity", "trace": "no/such/folder/t"}, "--exit-trace"),
        ({"trace": "."}, "--exit-trace"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        exit_policy(flags(**options), CAPTION)


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        (True, {"policy": "similarity", "encoder_threshold": 0.9}, "--exit-image-threshold and"),
        (False, {"policy": "similarity", "image_threshold": 0.9}, "--split-modalities"),
        (False, {"policy": "similarity", "text_threshold": 0.9}, "--split-modalities"),
        (True, {"policy": "static", "depths": "7,1,1"}, "6 encoder and 6 decoder layers"),
        (True, {"policy": "static", "depths": "1,1,7"}, "6 encoder and 6 decoder layers"),
        (False, {"policy": "static", "depths": "1,2,3"}, "must be equal"),
    ],
)
def test_what_the_model_lacks_is_refused(split, options, message):
    cfg = flags(**options)
    policy = exit_policy(cfg, CAPTION)
    with pytest.raises(ValueError, match=message):
        refuse_misfit(cfg, policy, nano(split))


def test_what_the_model_has_is_taken():
    for split, options in (
        (True, {"policy": "similarity", "image_threshold": 1.0, "text_threshold": 2.0}),
        (False, {"policy": "similarity", "encoder_threshold": 0.9}),
        (True, {"policy": "static", "depths": "6,1,6"}),
        (False, {"policy": "static", "depths": "2,2,3"}),
    ):
        cfg = flags(**options)
        refuse_misfit(cfg, exit_policy(cfg, CAPTION), nano(split))
    refuse_misfit(ExitFlags(), None, object())  # full depth needs no exits


def test_other_models_have_no_exits():
    cfg = flags(policy="similarity")
    with pytest.raises(ValueError, match="object has no exits"):
        refuse_misfit(cfg, exit_policy(cfg, CAPTION), object())


def test_own_policies_take_flags_and_json():
    @register_policy("own")
    class Own(ExitPolicy):
        def __init__(self, decoder_threshold=0.0, patience=1):
            self.seen = decoder_threshold, patience

    try:
        cfg = flags(policy="own", decoder_threshold=0.5, options='{"patience": 3}')
        assert exit_policy(cfg, CAPTION).seen == (0.5, 3)
        assert exit_policy(flags(policy="own"), CAPTION).seen == (0.0, 1)
        parser = ArgumentParser()
        gen_parser_from_dataclass(parser, ExitFlags())
        assert "none, static, similarity, confidence, own" in " ".join(parser.format_help().split())
    finally:
        del POLICIES["own"]

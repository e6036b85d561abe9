"""Options of policies that a --user-dir registers, after the plugin was imported."""

import json
from argparse import ArgumentParser
from dataclasses import MISSING, dataclass
from typing import Optional

import pytest
import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from helpers.small_models import batch, generate, nano

from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.options import (
    ExitFlags,
    add_late_options,
    build_exit_policy,
    reject_misfit,
)
from ofa_exit.policies.base import ExitPolicy, option
from ofa_exit.policies.registry import POLICIES, register_policy


def flags(**options):
    return ExitFlags(**{f"exit_{name}": value for name, value in options.items()})


@pytest.fixture
def late():
    """A policy that is registered after the options were made, as from a --user-dir."""

    @register_policy("late")
    @dataclass
    class LateExit(ExitPolicy):
        label: str = option(MISSING, "a name", flag="mark", metavar="NAME")
        depth: int = option(2, "layers to run", at_least=1, at_most=9)
        decoder_threshold: float = option(0.5, "of the decoder", at_least=0)
        quiet: bool = option(False, "a switch")

        def decoder_gate(self, seen):
            return seen.layer >= self.depth

    yield LateExit
    del POLICIES["late"]


def parse(*arguments):
    """Options as a command line gives them."""
    parser = ArgumentParser()
    gen_parser_from_dataclass(parser, ExitFlags())
    add_late_options(parser)
    return parser.parse_args(["--exit-policy", "late", *arguments])


def test_late_policies_get_flags(late):
    cfg = parse("--exit-depth", "3", "--exit-mark", "x", "--exit-decoder-threshold", "0.25")
    assert json.loads(cfg.exit_late_options) == {"exit_depth": 3, "exit_mark": "x"}
    assert not hasattr(cfg, "exit_depth")
    policy = build_exit_policy(cfg, "caption")
    assert policy == late("x", 3, 0.25)
    assert policy.given == {"depth", "decoder_threshold", "label"}


def test_late_flags_and_json_go_together(late):
    json_and_flag = ["--exit-options", '{"label": "x"}'], ["--exit-depth", "3"]
    for first, second in (json_and_flag, json_and_flag[::-1]):
        cfg = parse(*first, *second)
        assert build_exit_policy(cfg, "caption") == late("x", 3, 0.5)
    twice = parse("--exit-options", '{"label": "x", "depth": 2}', "--exit-depth", "3")
    with pytest.raises(UsageError, match=r"depth.*--exit-depth"):
        build_exit_policy(twice, "caption")
    defaults = flags(policy="late", options='{"label": "y"}')
    assert build_exit_policy(defaults, "caption") == late("y", 2, 0.5)


def test_late_policies_run(late):
    model = nano()
    policy = build_exit_policy(parse("--exit-depth", "3", "--exit-mark", "x"), "caption")
    reject_misfit(flags(policy="late"), policy, model)
    model.configure_exits(policy)
    generate(model, batch(2), 4)
    assert {int(d) for step in model.last_trace.steps for d in step.layers_used.flatten()} == {3}
    assert torch.equal(model.last_trace.text_layers, torch.tensor([6, 6]))


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"late.*--exit-mark NAME"),
        (("--exit-mark", "x", "--exit-depth", "0"), r"--exit-depth.*1.*9.*0"),
        (("--exit-mark", "x", "--exit-depth", "10"), r"--exit-depth.*1.*9.*10"),
        (("--exit-options", '{"label": "x", "depth": 2.5}'), r"--exit-depth.*whole.*2\.5"),
        (("--exit-mark", "x", "--exit-image-threshold", "1"), r"late.*--exit-image-threshold"),
        (
            ("--exit-mark", "x", "--exit-decoder-threshold", "many"),
            r"--exit-decoder-threshold must be a number, got 'many'",
        ),
    ],
)
def test_options_of_late_policies_are_checked(arguments, message):
    with pytest.raises(UsageError, match=message):
        build_exit_policy(parse(*arguments), "caption")


@pytest.mark.usefixtures("late")
def test_late_flags_read_numbers(capsys):
    for value in ("2.5", "many"):
        with pytest.raises(SystemExit):
            parse("--exit-depth", value)
        assert f"--exit-depth: invalid int value: '{value}'" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"--exit-options '\{'"):
        build_exit_policy(parse("--exit-options", "{", "--exit-depth", "2"), "caption")


def test_late_switches_take_no_value(late):
    policy = build_exit_policy(parse("--exit-quiet", "--exit-mark", "x"), "caption")
    assert policy == late("x", quiet=True) and policy.given == {"label", "quiet"}
    assert not build_exit_policy(parse("--exit-mark", "x"), "caption").quiet


@pytest.mark.usefixtures("late")
def test_whole_numbers():
    for value in ("3", "3.0"):
        cfg = flags(policy="late", options=f'{{"label": "x", "depth": {value}}}')
        found = build_exit_policy(cfg, "caption").depth
        assert found == 3 and type(found) is int


@pytest.mark.usefixtures("late")
def test_help_names_late_policies():
    parser = ArgumentParser()
    gen_parser_from_dataclass(parser, ExitFlags())
    add_late_options(parser)
    shown = " ".join(parser.format_help().split())
    assert "saturation, meta, learned, late" in shown
    assert "--exit-depth" in shown and "layers to run" in shown
    assert "--exit-mark NAME" in shown


def test_options_of_the_runtime_are_no_fields():
    @dataclass
    class Taking(ExitPolicy):
        kv: int = option(1, "taken")

    @dataclass
    class TakingByFlag(ExitPolicy):
        number: int = option(1, "taken", flag="layers")

    for cls, name in ((Taking, "--exit-kv"), (TakingByFlag, "--exit-layers")):
        with pytest.raises(ValueError, match=f"{name}.*flag="):
            register_policy("taking")(cls)


@pytest.mark.usefixtures("late")
def test_flags_of_late_policies_without_them_are_named():
    parser = ArgumentParser()
    gen_parser_from_dataclass(parser, ExitFlags())
    add_late_options(parser)
    cfg = parser.parse_args(["--exit-depth", "2"])
    with pytest.raises(UsageError, match=r"--exit-depth.*--exit-policy late"):
        build_exit_policy(cfg, "caption")
    cfg = parser.parse_args(["--exit-depth", "2", "--exit-policy", "similarity"])
    with pytest.raises(UsageError, match=r"similarity.*--exit-depth"):
        build_exit_policy(cfg, "caption")


def test_fields_are_read_by_their_types():
    @dataclass
    class Typed(ExitPolicy):
        needed: int = option(MISSING, "required", at_least=1)
        maybe: Optional[int] = option(None, "optional", at_least=1)
        switch: bool = option(True, "a switch")
        free: float = option(0.0, "any number")

    assert Typed(2, 3, "false") == Typed(2, 3, False)
    for make, name in (
        (lambda: Typed(0), "needed"),
        (lambda: Typed(1, 0), "maybe"),
        (lambda: Typed(1, 1, "no"), "switch"),
        (lambda: Typed(1, 1, True, float("inf")), "free must be a finite number, got inf"),
    ):
        with pytest.raises(ValueError, match=name):
            make()

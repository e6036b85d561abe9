"""Thresholds that look like percent: warned of, once."""

import re

import pytest

from ofa_exit.plugin.options import ExitFlags, _warn_once, build_exit_policy


def flags(**options):
    return ExitFlags(**{f"exit_{name}": value for name, value in options.items()})


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"decoder_threshold": "90"}, "--exit-decoder-threshold 90: nothing exits .* such as 0.9"),
        ({"image_threshold": "0.9,0.9,97,0.9,0.9"}, "--exit-image-threshold 0.9,0.9,97.*0.97"),
        ({"policy": "confidence", "alpha": 250.0}, "--exit-alpha 250.*not percent, such as 0.9"),
        ({"policy": "softmax", "options": '{"threshold": 80}'}, "--exit-threshold 80.*as 0.8"),
    ],
)
def test_percent_for_a_fraction_is_warned_of_once(options, warning, caplog):
    _warn_once.cache_clear()
    for _ in range(2):
        build_exit_policy(flags(**{"policy": "similarity", **options}), "caption")
    (message,) = caplog.messages
    assert re.match(warning, message)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "similarity", "decoder_threshold": "2"},  # never, as in the grids
        {"policy": "similarity"},
        {"policy": "entropy", "entropy": "5"},  # in nats
    ],
)
def test_thresholds_that_mean_what_they_say(options, caplog):
    _warn_once.cache_clear()
    build_exit_policy(flags(**options), "caption")
    assert caplog.messages == []

"""Mean layers and MuE's Eq. 14, by hand."""

import pytest

from ofa_exit.evaluation.efficiency.depth import (
    SampleDepth,
    check_reference_layers,
    expected_time_reduction,
    mean_layers,
    parameters_used,
    without_text,
)
from ofa_exit.evaluation.efficiency.totals import RunTotals
from ofa_exit.runtime.flops import PARTS


def test_full_depth_saves_nothing():
    assert expected_time_reduction([SampleDepth(6, 6, (6, 6, 6))], 6, 6) == 0


def test_equation_14_by_hand():
    # Encoder (2 + 4) / 2 of 6 = 1/2; words: two exit after layer 1, one after layer 4: 6 of 3·8.
    sample = SampleDepth(2, 4, (1, 4, 1))
    assert expected_time_reduction([sample], 6, 8) == pytest.approx(1 - (1 / 2 + 6 / 24) / 2)


def test_only_present_modalities_count():
    assert expected_time_reduction([SampleDepth(0, 3, (6,))], 6, 6) == pytest.approx(0.25)
    assert expected_time_reduction([SampleDepth(3, 0, (6,))], 6, 6) == pytest.approx(0.25)


def test_samples_weigh_the_same_whatever_their_length():
    long, short = SampleDepth(6, 6, (6,) * 9), SampleDepth(6, 6, (3,))
    assert expected_time_reduction([long, short], 6, 6) == pytest.approx((0 + 0.25) / 2)
    assert mean_layers([long, short]).decoder == 4.5


def test_mean_layers_leave_absent_modalities_out():
    layers = mean_layers([SampleDepth(4, 2, (1, 3)), SampleDepth(0, 6, (6,))])
    assert (layers.image, layers.text, layers.decoder) == (4, 4, 4)
    assert mean_layers([SampleDepth(0, 6, (6,))]).image is None


def test_the_reduction_follows_from_the_means():
    samples = [SampleDepth(2, 1, (1, 2)), SampleDepth(5, 6, (4, 6, 6))]
    layers = mean_layers(samples)
    expected = 1 - ((layers.image + layers.text) / 2 / 6 + layers.decoder / 6) / 2
    assert expected_time_reduction(samples, 6, 6) == pytest.approx(expected)


def test_equation_14_without_the_text():
    assert without_text(SampleDepth(2, 4, (1,))) == SampleDepth(2, 0, (1,))
    no_image = SampleDepth(0, 3, (6,))
    assert without_text(no_image) == no_image


def totals(samples, exits=(), head_depth=0, **given):
    none = dict.fromkeys(PARTS, 0)
    rest = dict(seconds=1.0, counted=0, executed=none, full=none, biases={}, prompt=None)
    return RunTotals.of(samples, 6, 6, exits, head_depth, **{**rest, **given})


def test_layers_of_heads_count_where_words_exit_through_them():
    # Heads after layers 2 and 4, one layer each: the words used 2 + 1, 3, 4 + 1 and 6 layers.
    sample = SampleDepth(6, 6, (2, 3, 4, 6))
    assert parameters_used(sample, [2, 4], 1) == [3, 3, 5, 6]
    found = expected_time_reduction([sample], 6, 6, [2, 4], 1)
    assert found == pytest.approx(1 - (1 + 17 / 24) / 2)
    # Heads without layers of their own, or none at all: the layers used alone.
    for exits, head_depth in (([2, 4], 0), ((), 1)):
        found = expected_time_reduction([sample], 6, 6, exits, head_depth)
        assert found == pytest.approx(1 - (1 + 15 / 24) / 2)
    assert mean_layers([sample]).decoder == 15 / 4


def test_reference_layers_are_those_of_equation_14():
    """OFA tiny against OFA base: MuE's Table 1 has 1 - 4/6 for it."""
    none = dict.fromkeys(PARTS, 0)
    rest = dict(seconds=1.0, counted=0, executed=none, full=none, biases={})
    full = [SampleDepth(4, 4, (4, 4))]
    tiny = RunTotals.of(full, 4, 4, (), 0, reference_layers=(6, 6), **rest)
    summary = tiny.summary()
    assert summary["expected_time_reduction"] == pytest.approx(1 - 4 / 6)
    assert (summary["reference_layers"], summary["encoder_layers_full"]) == ("6+6", 4)
    assert "expected_time_reduction against 6+6 layers  33.3 %" in tiny.table()
    assert RunTotals.merged([tiny, tiny]).summary() == {
        **summary, "sentences": 2, "words": 4, "seconds": 2
    }  # fmt: skip
    own = RunTotals.of(full, 4, 4, (), 0, **rest)
    assert own.summary()["expected_time_reduction"] == 0 and "against" not in own.table()
    assert "reference_layers" not in own.summary()
    with pytest.raises(ValueError, match=r"reference_layers \[6, 6\] and None"):
        RunTotals.merged([tiny, own])


def test_a_reference_is_at_least_as_deep_as_the_model():
    check_reference_layers((6, 6), 6, 4)
    for deeper in ((7, 6), (6, 7)):
        with pytest.raises(ValueError, match=r"--reference-layers 6,6: .* at least as deep"):
            check_reference_layers((6, 6), *deeper)


def test_words_that_no_layer_ran_for_do_not_count():
    sample = SampleDepth(6, 6, (0, 2, 0, 4))
    assert parameters_used(sample, [2], 1) == [3, 4]
    found = expected_time_reduction([sample], 6, 6, [2], 1)
    assert found == pytest.approx(1 - (1 + 7 / 12) / 2)
    assert mean_layers([sample]).decoder == 3


def test_parameter_speedup_by_hand():
    # N / mean(i + k) over all words of the run, whatever sentence they belong to.
    samples = [SampleDepth(6, 6, (2, 6)), SampleDepth(6, 6, (2, 0, 4, 6))]
    summary = totals(samples, exits=[2], head_depth=1).summary()
    assert summary["parameter_speedup"] == pytest.approx(6 * 5 / (3 + 6 + 3 + 4 + 6))
    assert summary["expected_time_reduction"] == pytest.approx(
        expected_time_reduction(samples, 6, 6, [2], 1)
    )
    assert totals(samples).summary()["parameter_speedup"] == pytest.approx(6 * 5 / 20)
    assert totals([SampleDepth(6, 6, (6,))], [2], 1).summary()["parameter_speedup"] == 1


def test_weights_of_heads_without_layers_have_a_speedup_of_their_own():
    # Heads after layers 2 and 4 with the weights of 5 decoder layers; three of five words exit
    # through one, two words reach layer 6, and one ran no layer.
    samples = [SampleDepth(6, 6, (2, 6)), SampleDepth(6, 6, (2, 0, 4, 6))]
    found = totals(samples, exits=[2, 4], head_layers=5.0)
    summary = found.summary()
    assert summary["parameter_speedup"] == pytest.approx(6 * 5 / 20)
    assert summary["parameter_speedup_with_heads"] == pytest.approx(6 * 5 / (20 + 3 * 5))
    assert "0.86 x (a head has the weights of 5.0 decoder layers)" in found.table()
    assert RunTotals.merged([found, found]).summary() == {
        **summary, "sentences": 4, "words": 12, "seconds": 2
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"head_layers 5\.0 and 4\.0.*different models"):
        RunTotals.merged([found, totals(samples, exits=[2, 4], head_layers=4.0)])
    # Nothing to add where no head is used, or where heads have no weights beyond their layers.
    for others in (totals(samples, head_layers=5.0), totals(samples, [2, 4], 1)):
        assert "parameter_speedup_with_heads" not in others.summary()
        assert "parameter_speedup_with_heads" not in others.table()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (SampleDepth(0, 0, (1,)), r"sample 2\b.*no encoder layer"),
        (SampleDepth(7, 1, (1,)), r"sample 2\b.*image_layers=7.*6 encoder, 6 decoder"),
        (SampleDepth(1, 1, (7,)), r"sample 2\b.*word_layers=\(7,\).*6 encoder, 6 decoder"),
        (SampleDepth(1, 1, ()), "without words"),
    ],
)
def test_impossible_samples_are_rejected(sample, message):
    with pytest.raises(ValueError, match=message):
        expected_time_reduction([SampleDepth(1, 1, (1,)), sample], 6, 6)


def test_no_samples_are_rejected():
    with pytest.raises(ValueError, match="no samples"):
        expected_time_reduction([], 6, 6)
    with pytest.raises(ValueError, match="no samples"):
        mean_layers([])


PROMPTED = [SampleDepth(6, 1, (6,)), SampleDepth(0, 3, (6,))]
WITHOUT = "expected_time_reduction_without_prompt"


def test_what_a_constant_prompt_contributes():
    """The prompt saves 5 of 12 encoder layers of the first sample; the second has no image."""
    constant = totals(PROMPTED, prompt="0 5 2")
    summary = constant.summary()
    assert summary["expected_time_reduction"] == pytest.approx((2.5 / 6 + 3 / 6) / 2 / 2)
    assert summary[WITHOUT] == pytest.approx((0 + 3 / 6) / 2 / 2)
    assert "without the constant prompt   12.5 %" in constant.table()
    assert WITHOUT not in totals(PROMPTED).summary()
    assert "prompt" not in totals(PROMPTED).table()


def test_shards_agree_on_the_prompt():
    one, other = totals(PROMPTED, prompt="0 5 2"), totals(PROMPTED, prompt="0 6 2")
    assert RunTotals.merged([one, totals([]), one]).summary()[WITHOUT] == one.summary()[WITHOUT]
    assert WITHOUT not in RunTotals.merged([one, other]).summary()
    assert WITHOUT not in RunTotals.merged([one, totals(PROMPTED)]).summary()

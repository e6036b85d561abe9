"""Mean layers and MuE's Eq. 14, by hand."""

import pytest

from ofa_exit.evaluation.efficiency.depth import SampleDepth, expected_time_reduction, mean_layers


def test_full_depth_saves_nothing():
    assert expected_time_reduction([SampleDepth(6, 6, (6, 6, 6))], 6, 6) == 0


def test_equation_14_by_hand():
    # Encoder (2 + 4) / 2 of 6 = 1/2; words: two leave after layer 1, one after layer 4: 6 of 3·8.
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


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (SampleDepth(0, 0, (1,)), "sample 2 used no encoder layer"),
        (SampleDepth(7, 1, (1,)), "sample 2 claims more layers"),
        (SampleDepth(1, 1, (7,)), "sample 2 claims more layers"),
        (SampleDepth(1, 1, ()), "without words"),
    ],
)
def test_impossible_samples_are_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        expected_time_reduction([SampleDepth(1, 1, (1,)), sample], 6, 6)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        expected_time_reduction([], 6, 6)
    with pytest.raises(ValueError, match="no samples"):
        mean_layers([])

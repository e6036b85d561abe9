"""The cosines that gates use, against torch's own in double precision."""

import pytest
import torch
import torch.nn.functional as F

from ofa_exit.policies.measures import hidden_saturation, sample_saturation, token_mean_saturation


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def states(request):
    """Return states before and after a layer, [3, 200, 64], large and nearly parallel."""
    torch.manual_seed(1)
    before = 100 * torch.randn(3, 200, 64)
    after = before + 10 * torch.randn(3, 200, 64)
    return before.to(request.param), after.to(request.param)


def cosine(before, after):
    return F.cosine_similarity(before.double(), after.double(), dim=-1).float()


def close(got, wanted):
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_cosine(states, dtype):
    """The dot product of 64 numbers around 100 overflows fp16."""
    with torch.autocast("cpu", dtype=dtype):
        got = hidden_saturation(*states), sample_saturation(*states)
    close(got[0], cosine(*states))
    close(got[1], cosine(*(s.flatten(1) for s in states)))


def test_cosine_per_token(states):
    close(hidden_saturation(*states), cosine(*states))


def test_cosine_per_sample_concatenates_its_tokens(states):
    close(sample_saturation(*states), cosine(*(s.flatten(1) for s in states)))


@pytest.mark.parametrize("measure", [sample_saturation, token_mean_saturation])
def test_padding_changes_no_cosine(states, measure):
    lengths = [200, 1, 120]
    padding = torch.arange(200) >= torch.tensor(lengths)[:, None]
    padded = [s.masked_fill(padding[..., None], 1e4) for s in states]
    alone = [measure(*(s[i : i + 1, :n] for s in states)) for i, n in enumerate(lengths)]
    close(measure(*padded, padding), torch.cat(alone))


def test_mean_of_token_cosines(states):
    close(token_mean_saturation(*states), cosine(*states).mean(dim=1))


def test_zero_states_have_a_cosine_of_zero():
    zeros, ones = torch.zeros(2, 3, 8), torch.ones(2, 3, 8)
    assert not hidden_saturation(zeros, ones).any()
    assert not sample_saturation(zeros, zeros).any()


def test_small_states_have_a_cosine_of_one_with_themselves():
    small = torch.full((1, 3, 8), 1e-6)
    close(hidden_saturation(small, small), torch.ones(1, 3))


def test_nan_stays_nan():
    broken = torch.ones(1, 3, 8)
    broken[0, 1, 2] = float("nan")
    assert sample_saturation(broken, torch.ones(1, 3, 8)).isnan().all()
    assert hidden_saturation(broken, broken).isnan().tolist() == [[False, True, False]]

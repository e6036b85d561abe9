"""The cosines of gates against torch's own, in double precision."""

import pytest
import torch
import torch.nn.functional as F

from ofa_exit.policies.measures import hidden_saturation, sample_saturation, token_mean_saturation


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def states(request):
    """States before and after a layer, [3, 200, 64], large and nearly parallel."""
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
def test_autocast_changes_nothing(states, dtype):
    """A product of 64 numbers around 100 is more than fp16 holds."""
    with torch.autocast("cpu", dtype=dtype):
        got = hidden_saturation(*states), sample_saturation(*states)
    close(got[0], cosine(*states))
    close(got[1], cosine(*(s.flatten(1) for s in states)))


def test_tokens(states):
    close(hidden_saturation(*states), cosine(*states))


def test_samples_end_to_end(states):
    close(sample_saturation(*states), cosine(*(s.flatten(1) for s in states)))


@pytest.mark.parametrize("measure", [sample_saturation, token_mean_saturation])
def test_padding_counts_for_nothing(states, measure):
    lengths = [200, 1, 120]
    padding = torch.arange(200) >= torch.tensor(lengths)[:, None]
    padded = [s.masked_fill(padding[..., None], 1e4) for s in states]
    alone = [measure(*(s[i : i + 1, :n] for s in states)) for i, n in enumerate(lengths)]
    close(measure(*padded, padding), torch.cat(alone))


def test_mean_of_tokens(states):
    close(token_mean_saturation(*states), cosine(*states).mean(dim=1))


def test_states_of_zeros_are_unlike_all():
    nothing, some = torch.zeros(2, 3, 8), torch.ones(2, 3, 8)
    assert not hidden_saturation(nothing, some).any()
    assert not sample_saturation(nothing, nothing).any()


def test_small_states_are_like_themselves():
    small = torch.full((1, 3, 8), 1e-6)
    close(hidden_saturation(small, small), torch.ones(1, 3))


def test_what_is_no_number_stays_none():
    broken = torch.ones(1, 3, 8)
    broken[0, 1, 2] = float("nan")
    assert sample_saturation(broken, torch.ones(1, 3, 8)).isnan().all()
    assert hidden_saturation(broken, broken).isnan().tolist() == [[False, True, False]]

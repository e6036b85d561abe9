"""What gates measure, against torch's own or plain loops in double precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from ofa_exit.policies.measures import (
    hidden_saturation,
    predicted_word,
    sample_saturation,
    softmax_confidence,
    softmax_entropy,
    softmax_margin,
    token_mean_saturation,
)


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


# ------------------------------------------------------------------ word scores

NAN, INF = float("nan"), float("inf")
WORD_MEASURES = [
    softmax_confidence,
    softmax_margin,
    softmax_entropy,
    lambda logits: softmax_entropy(logits, normalized=True),
]


def probabilities(row: torch.Tensor) -> list[float]:
    return row.double().softmax(-1).tolist()


def test_entropy_margin_and_word_are_those_of_plain_loops():
    logits = 3 * torch.randn(4, 5, 30, dtype=torch.float64)
    logits[1:, :, 7:20] = -INF
    for row, entropy, normalized, margin, word in zip(
        logits.flatten(0, 1),
        softmax_entropy(logits).flatten(),
        softmax_entropy(logits, normalized=True).flatten(),
        softmax_margin(logits).flatten(),
        predicted_word(logits).flatten(),
    ):
        p = probabilities(row)
        wanted = -sum(q * math.log(q) for q in p if q > 0)
        assert float(entropy) == pytest.approx(wanted, abs=1e-5)
        allowed = sum(z > -INF for z in row.tolist())
        assert float(normalized) == pytest.approx(wanted / math.log(allowed), abs=1e-5)
        best = sorted(p)[-2:]
        assert float(margin) == pytest.approx(best[1] - best[0], abs=1e-6)
        assert int(word) == p.index(max(p))


def test_the_ends_of_the_scale():
    uniform = torch.zeros(2, 8)
    assert softmax_entropy(uniform).tolist() == pytest.approx([math.log(8)] * 2)
    assert softmax_entropy(uniform, normalized=True).tolist() == pytest.approx([1.0, 1.0])
    assert softmax_margin(uniform).tolist() == [0.0, 0.0]
    one = torch.full((2, 8), -INF)
    one[:, 3] = 5.0
    assert softmax_entropy(one).tolist() == softmax_entropy(one, normalized=True).tolist() == [0, 0]
    assert softmax_margin(one).tolist() == softmax_confidence(one).tolist() == [1.0, 1.0]
    assert predicted_word(one).tolist() == [3, 3]


@pytest.mark.parametrize("measure", WORD_MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_measures_of_half_precision_are_taken_in_float32(measure, dtype):
    """And so under autocast."""
    logits = (20 * torch.randn(6, 60)).to(dtype)
    found = measure(logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, measure(logits.float()))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(measure(logits), found)


@pytest.mark.parametrize("measure", WORD_MEASURES)
@pytest.mark.parametrize("broken", [[0.0, NAN, 1.0], [-INF] * 3, [NAN] * 3])
def test_broken_scores_compare_as_false(measure, broken):
    found = measure(torch.tensor([[3.0, 1.0, 0.0], broken]))
    assert found.isnan().tolist() == [False, True]
    assert not (found[1] > 0) and not (found[1] < 9) and not (found[1] >= 0)


@pytest.mark.parametrize("broken", [[0.0, NAN, 1.0], [-INF] * 3, [NAN] * 3])
def test_broken_scores_predict_no_word(broken):
    assert predicted_word(torch.tensor([[3.0, 1.0, 0.0], broken])).tolist() == [0, -1]

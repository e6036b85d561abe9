"""CALM's losses of a learned confidence, against loops over tokens."""

import math

import pytest
import torch

from ofa_exit.objectives.consistency import balanced_consistency_loss, first_consistent_loss

LAYERS, TOKENS = 5, 9


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    logits = torch.randn(LAYERS, TOKENS, 2, requires_grad=True)
    consistent = torch.rand(LAYERS, TOKENS) < torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])[:, None]
    return logits, consistent


def exit_probability(logits, layer: int, token: int) -> float:
    go_on, leave = logits[layer, token].tolist()
    return math.exp(leave) / (math.exp(go_on) + math.exp(leave))


def balanced_by_hand(logits, consistent) -> float:
    """As t5x: a positive weighs 1 - positives / tokens, a negative 1 - negatives / tokens."""
    total = 0.0
    for layer in range(LAYERS):
        positives = sum(consistent[layer].tolist())
        for token in range(TOKENS):
            m = exit_probability(logits, layer, token)
            if consistent[layer, token]:
                total -= (1 - positives / TOKENS) * math.log(m) / TOKENS / LAYERS
            else:
                total -= positives / TOKENS * math.log(1 - m) / TOKENS / LAYERS
    return total


def first_by_hand(logits, consistent) -> float:
    total = 0.0
    for token in range(TOKENS):
        log_p = 0.0
        for layer in range(LAYERS):
            m = exit_probability(logits, layer, token)
            if consistent[layer, token]:
                log_p += math.log(m)
                break
            log_p += math.log(1 - m)
        total -= log_p / TOKENS
    return total


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [(balanced_consistency_loss, balanced_by_hand), (first_consistent_loss, first_by_hand)],
)
@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_loops(loss, by_hand, seed):
    logits, consistent = case(seed)
    value = loss(logits, consistent)
    assert value.item() == pytest.approx(by_hand(logits, consistent), rel=1e-5)
    value.backward()
    assert logits.grad.isfinite().all()


def test_a_rare_class_weighs_as_much_as_a_frequent_one():
    """The best constant says one half, however few tokens are consistent."""
    consistent = torch.arange(20)[None] < 1
    bias = torch.zeros(2, requires_grad=True)
    loss = balanced_consistency_loss(bias.expand(1, 20, 2), consistent)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 1 / 20 * 19 / 20 * math.log(2))
    torch.testing.assert_close(bias.grad, torch.zeros(2))


@pytest.mark.parametrize("label", [False, True])
def test_a_batch_of_one_class_teaches_nothing(label):
    """Otherwise the deep layers of small batches, nearly always consistent, would learn to exit."""
    logits = torch.randn(1, 8, 2, requires_grad=True)
    loss = balanced_consistency_loss(logits, torch.full((1, 8), label))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_first_layers_are_a_distribution():
    """Their probabilities, the last layer's included, have sum 1."""
    logits, _ = case(0)
    total = torch.zeros(TOKENS)
    for first in range(LAYERS + 1):
        consistent = (torch.arange(LAYERS) >= first)[:, None].expand(-1, TOKENS)
        for token in range(TOKENS):
            one = slice(token, token + 1)
            total[token] += (
                (-first_consistent_loss(logits[:, one], consistent[:, one])).exp().item()
            )
    torch.testing.assert_close(total, torch.ones(TOKENS))


@pytest.mark.parametrize("loss", [balanced_consistency_loss, first_consistent_loss])
def test_half_precision_logits_are_scored_in_float32(loss):
    logits, consistent = case(1)
    value = loss(logits.half(), consistent)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits, consistent).item(), rel=1e-2)

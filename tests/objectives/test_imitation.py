"""DeeCap's imitation loss against a loop over layers and tokens."""

import math

import pytest
import torch

from ofa_exit.objectives.imitation import imitation_loss

LAYERS, TOKENS, CHANNELS = 4, 5, 3


def imitation(later, pooled):
    return (later * pooled + 0.3).tanh()


def test_the_loss_equals_the_slow_loop():
    pooled = {layer: torch.randn(TOKENS, CHANNELS) for layer in range(1, LAYERS + 1)}
    found = imitation_loss(pooled, imitation)
    for token in range(TOKENS):
        by_layer = []
        for layer in range(1, LAYERS):
            distances = []
            for later in range(layer + 1, LAYERS + 1):
                a = [math.tanh(later * x + 0.3) for x in pooled[layer][token].tolist()]
                b = pooled[later][token].tolist()
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                distances.append(1 - dot / math.hypot(*a) / math.hypot(*b))
            by_layer.append(sum(distances) / len(distances))
        assert float(found[token]) == pytest.approx(sum(by_layer) / len(by_layer), abs=1e-5)


def test_imitated_states_are_constants():
    pooled = {layer: torch.randn(TOKENS, CHANNELS, requires_grad=True) for layer in (1, 2, 3)}
    imitation_loss(pooled, imitation).sum().backward()
    assert pooled[1].grad.any() and pooled[2].grad.any() and pooled[3].grad is None
    # Layer 2 learns by its own imitation of layer 3 alone.
    alone = pooled[2].detach().clone().requires_grad_()
    cosine = torch.nn.functional.cosine_similarity(imitation(3, alone), pooled[3].detach(), dim=-1)
    ((1 - cosine).sum() / 2).backward()
    torch.testing.assert_close(pooled[2].grad, alone.grad)


def test_perfect_imitations_cost_nothing():
    pooled = dict.fromkeys((1, 2, 3), torch.randn(TOKENS, CHANNELS))
    loss = imitation_loss(pooled, lambda later, state: 2 * state)
    torch.testing.assert_close(loss, torch.zeros(TOKENS), rtol=0, atol=1e-6)
    opposite = imitation_loss(pooled, lambda later, state: -state)
    torch.testing.assert_close(opposite, torch.full((TOKENS,), 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cosines_are_of_full_precision(dtype):
    pooled = {layer: torch.randn(TOKENS, CHANNELS).to(dtype) for layer in (1, 2)}
    assert imitation_loss(pooled, imitation).dtype == torch.float32

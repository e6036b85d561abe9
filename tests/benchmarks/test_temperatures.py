"""Temperatures by exit layer: their fit, and where they act."""

import pytest
import torch

from benchmarks.temperatures import Temperatures, fit_temperature
from ofa_exit.models.archs import ARCHS
from ofa_exit.policies.registry import build_policy
from ofa_exit.testing import build_with_weights, random_images, random_tokens


@pytest.mark.parametrize("expected", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_words_is_found(expected):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(20_000, 7, generator=generator)
    words = torch.multinomial((logits / expected).softmax(-1), 1, generator=generator)
    assert fit_temperature(logits, words.squeeze(1)) == pytest.approx(expected, rel=0.06)


def test_word_scores_are_divided_by_the_temperature_of_their_layer():
    model = build_with_weights(ARCHS["ofa_nano"], 60, split_modalities=True).eval()
    given = {
        "src_tokens": random_tokens("src", (3, 5), 60),
        "src_lengths": torch.full((3,), 5),
        "patch_images": random_images("images", (3, 3, 32, 32)),
        "patch_masks": torch.ones(3, dtype=torch.bool),
        "prev_output_tokens": random_tokens("words", (3, 4), 60),
    }
    policy = build_policy("similarity", decoder_threshold=0.5, schedule="static")
    model.configure_exits(policy, "copy")
    with torch.no_grad():
        expected, extra = model(**given)
        temperatures = Temperatures(model.decoder)
        torch.testing.assert_close(model(**given)[0], expected)
        temperatures.of_layer = torch.arange(1.0, 8.0)
        found, _ = model(**given)
    layers = extra["layers_used"]
    assert len(layers.unique()) > 1
    for row, position in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        divisor = 1.0 + layers[row, position].item()
        torch.testing.assert_close(found[row, position], expected[row, position] / divisor)

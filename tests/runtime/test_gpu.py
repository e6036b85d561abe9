"""On a real GPU: the tokens, layers and scores of the CPU."""

import pytest
import torch
from helpers.small_models import batch, generate, nano

from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit

POLICIES = {
    "none": None,
    "static": StaticExit((2, 3, 2)),
    "similarity": SimilarityExit(0.97, 0.97, decoder_threshold=0.9, schedule="static"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("kv", ["propagate", "recompute", "copy"])
@pytest.mark.parametrize("policy", POLICIES)
def test_generation_is_that_of_the_cpu(policy, kv):
    net_input = batch(4)
    found = []
    for device in ("cpu", "cuda"):
        model = nano().to(device)
        model.configure_exits(POLICIES[policy], kv)
        hyps = generate(model, {name: value.to(device) for name, value in net_input.items()})
        tokens = [[hyp["tokens"].tolist() for hyp in beam] for beam in hyps]
        scores = torch.stack([hyp["score"].cpu() for beam in hyps for hyp in beam])
        layers = model.last_trace and model.last_trace.depths(tokens)
        found.append((tokens, layers, scores))
    (tokens, layers, scores), (gpu_tokens, gpu_layers, gpu_scores) = found
    assert gpu_tokens == tokens and gpu_layers == layers
    torch.testing.assert_close(gpu_scores, scores, rtol=1e-4, atol=1e-4)

"""Gates on CUDA without a GPU, where the host reads once per layer, and in half precision."""

from __future__ import annotations

import pytest
import torch
from helpers.fake_devices import encode, fake_model
from helpers.gate_files import write_gate
from helpers.policy_oracle import model_of
from helpers.small_models import batch, generate

from ofa_exit.policies.calm import MetaExit, SaturationExit, SoftmaxDiffExit, SoftmaxExit
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.entropy import EntropyExit
from ofa_exit.policies.learned import LearnedExit
from ofa_exit.policies.patience import PatienceExit
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.runtime import exit_loop


def learned(confidence):
    """Makes the policy once there is a folder for its gate."""
    return lambda folder: LearnedExit(write_gate(folder / "gate.json"), confidence)


CASES = [
    (SimilarityExit(2, 2, 2, [0.9, 1, 0.8]), None, 2),
    (ConfidenceExit([0.9, 1, 0.8]), None, 2),
    (EntropyExit(0.5), None, 3),
    (EntropyExit([0.5, 0, 0], normalized=True), "shared", 1),
    (PatienceExit(1), None, 3),
    (PatienceExit(1), "transformer", 2),
    (SoftmaxExit(0.9), None, 3),
    (SoftmaxDiffExit(0.9, "decay"), "adapter", 2),
    (SaturationExit(0.9, layers=[2]), None, 1),
    (MetaExit(0.9), "meta", 2),
    (learned([0.9, 1, 0.8]), None, 2),
]


@pytest.mark.parametrize(("policy", "head", "gates"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_gates_stay_on_the_device(fake, policy, head, gates, dtype, monkeypatch, tmp_path):
    policy = policy(tmp_path) if callable(policy) else policy
    model = fake_model(dtype=dtype, exits=head and "1,3", head=head or "transformer").eval()
    model.configure_exits(policy)
    out, state = encode(model, dtype)
    reads = []

    def nobody_exits(layers, state, exits, features):
        """What the one read would answer; everything before it runs on fake CUDA tensors."""
        assert exits.device.type == "cuda" and exits.dtype == torch.bool
        assert exits.shape == state.exit_mask.shape
        reads.append(1)
        return True

    monkeypatch.setattr(exit_loop, "exit_rows", nobody_exits)
    for length in range(1, 4):
        tokens = torch.full((6, length), 6, device="cuda")
        logits, _ = model.decoder(tokens, out, incremental_state=state)
        assert logits.device.type == "cuda"
        model.decoder.reorder_incremental_state_scripting(state, torch.arange(6, device="cuda"))
    assert len(reads) == 3 * gates


HALF = [
    (SimilarityExit(2, 2, 2, [0.5, 1, 0.4, 0.3, 0.2], "static"), "none"),
    (ConfidenceExit(0.1), "none"),
    (EntropyExit(0.9, normalized=True), "linear"),
    (EntropyExit(0.99, normalized=True), "imitation"),
    (PatienceExit(1), "none"),
    (PatienceExit(1), "adapter"),
    (SoftmaxExit(0.1), "transformer"),
    (SoftmaxDiffExit(0.05), "none"),
    (SaturationExit(0.5), "none"),
    (MetaExit(0.5), "meta"),
    (learned(0.1), "none"),
]


@pytest.mark.parametrize(("policy", "kind"), HALF)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_policies_decide_in_half_precision(policy, kind, dtype, tmp_path):
    policy = policy(tmp_path) if callable(policy) else policy
    model = model_of(kind).to(dtype)
    model.configure_exits(policy)
    net_input = batch(3)
    net_input["patch_images"] = net_input["patch_images"].to(dtype)
    hypotheses = generate(model, net_input, 6)
    assert all(hyp["positional_scores"].isfinite().all() for hyps in hypotheses for hyp in hyps)
    assert min(int(step.layers_used.min()) for step in model.last_trace.steps) < 6

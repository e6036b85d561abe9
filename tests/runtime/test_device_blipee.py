"""Exits on CUDA without a GPU: training and leaving never mix devices or wait for one.

Fake CUDA tensors start autograd threads: this file sorts after those whose tests fork.
"""

from argparse import Namespace

import pytest
import torch
from helpers.fake_devices import encode, fake_batch, fake_model

from ofa_exit.plugin.criterions.blipee import BlipeeAdversarial, BlipeeConfig
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.runtime import exit_loop
from ofa_exit.testing import build_dictionary

UPDATES = [("both", 0), ("alternate", 0), ("alternate", 1)]


def step(device: str, mode: str, updates: str, update: int):
    model = fake_model(device=device, exits="1,3")
    task = Namespace(target_dictionary=build_dictionary(60))
    config = BlipeeConfig(blipee_mode=mode, blipee_updates=updates, sentence_avg=False)
    criterion = BlipeeAdversarial.build_criterion(config, task).train()
    with torch.device(device):
        criterion.prepare_training(model)
    model.train().set_num_updates(update)
    net_input = fake_batch(device)
    target = net_input["prev_output_tokens"]
    sample = {"net_input": net_input, "target": target, "ntokens": 15, "nsentences": 3}
    loss, _, log = criterion(model, sample)
    kinds = {x.device.type for x in log.values() if torch.is_tensor(x)}
    assert kinds == {loss.device.type} == {device}
    return model, loss


@pytest.mark.parametrize("mode", ["supervised", "distill"])
@pytest.mark.parametrize(("updates", "update"), UPDATES)
def test_losses_stay_on_the_device(fake, mode, updates, update):
    step("cuda", mode, updates, update)


@pytest.mark.parametrize(("updates", "update"), UPDATES)
def test_every_trained_weight_gets_a_gradient(updates, update):
    """On tensors without values; fake CUDA ones have no backward without a GPU."""
    model, loss = step("meta", "distill", updates, update)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_one_host_read_an_exit(fake, kv, monkeypatch):
    model = fake_model(exits="1,3").eval()
    model.configure_exits(ConfidenceExit(0.9), kv)
    out, state = encode(model, torch.float32)
    reads = []

    def nobody_exits(layers, state, exits, features):
        assert exits.device.type == features.device.type == "cuda"
        reads.append(1)
        return True

    monkeypatch.setattr(exit_loop, "exit_rows", nobody_exits)
    with torch.no_grad():
        for length in range(1, 4):
            tokens = torch.full((6, length), 6, device="cuda")
            logits, _ = model.decoder(tokens, out, incremental_state=state)
            assert logits.device.type == "cuda"
            model.decoder.reorder_incremental_state_scripting(state, torch.arange(6, device="cuda"))
    assert len(reads) == 3 * 2

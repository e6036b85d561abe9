"""Every kind of head on CUDA without a GPU: no mixed devices, at most one host read a layer.

Fake CUDA tensors start autograd threads: this file sorts after those whose tests fork.
"""

from argparse import Namespace
from typing import Any

import pytest
import torch
from helpers.fake_devices import encode, fake_batch, fake_model
from helpers.head_samples import KINDS

from ofa_exit.objectives.consistency import LOSSES as CALM_LOSSES
from ofa_exit.plugin.criterions.calm import CalmMetaConfig, CalmMetaLoss
from ofa_exit.plugin.criterions.deecap import DeeCapLoss
from ofa_exit.plugin.criterions.multi_exit import MultiExitConfig, MultiExitLoss
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.runtime import exit_loop
from ofa_exit.testing import build_dictionary

WORD_KINDS = [kind for kind in KINDS if kind != "meta"]  # meta heads learn by calm_meta_loss
LOSSES = [*((MultiExitLoss, kind) for kind in WORD_KINDS), (DeeCapLoss, "imitation")]


def step(device: str, loss, kind: str, config: Any = None):
    model = fake_model(device=device, exits="1,2,3", head=kind).train()
    task = Namespace(target_dictionary=build_dictionary(60))
    criterion = loss.build_criterion(config or MultiExitConfig(sentence_avg=False), task).train()
    criterion.prepare_training(model)
    net_input = fake_batch(device)
    target = net_input["prev_output_tokens"]
    sample = {"net_input": net_input, "target": target, "ntokens": 15, "nsentences": 3}
    value, _, log = criterion(model, sample)
    kinds = {x.device.type for x in log.values() if torch.is_tensor(x)}
    assert kinds == {value.device.type} == {device}
    return model, value


@pytest.mark.parametrize(("loss", "kind"), LOSSES)
def test_losses_stay_on_the_device(fake, loss, kind):
    step("cuda", loss, kind)


@pytest.mark.parametrize(("loss", "kind"), LOSSES)
def test_every_weight_of_the_heads_gets_a_gradient(loss, kind):
    """On tensors without values; fake CUDA ones have no backward without a GPU."""
    model, value = step("meta", loss, kind)
    value.backward()
    heads = model.decoder.exit_heads
    assert all(p.grad is not None for p in heads.parameters())


@pytest.mark.parametrize("calm_meta_loss", CALM_LOSSES)
def test_the_meta_classifier_learns_on_the_device(fake, calm_meta_loss):
    step("cuda", CalmMetaLoss, "meta", CalmMetaConfig(calm_meta_loss=calm_meta_loss))


@pytest.mark.parametrize("calm_meta_loss", CALM_LOSSES)
def test_every_weight_of_the_meta_classifier_gets_a_gradient(calm_meta_loss):
    config = CalmMetaConfig(calm_meta_loss=calm_meta_loss)
    model, value = step("meta", CalmMetaLoss, "meta", config)
    value.backward()
    assert all(p.grad is not None for p in model.decoder.exit_heads.parameters())


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_host_read_an_exit(fake, kind, kv, monkeypatch):
    model = fake_model(exits="1,2,3", head=kind).eval()
    model.configure_exits(ConfidenceExit(0.9), kv)
    out, state = encode(model, torch.float32)
    reads = []

    def nobody_exits(layers, state, exits, features):
        assert exits.device.type == "cuda"
        assert all(kept.device.type == "cuda" for kept in layers.memory.values())
        reads.append(1)
        return True

    monkeypatch.setattr(exit_loop, "exit_rows", nobody_exits)
    monkeypatch.setattr(model.decoder, "rows_by_head", lambda *_: None)  # reads as well
    with torch.no_grad():
        for length in range(1, 4):
            tokens = torch.full((6, length), 6, device="cuda")
            logits, _ = model.decoder(tokens, out, incremental_state=state)
            assert logits.device.type == "cuda"
            model.decoder.reorder_incremental_state_scripting(state, torch.arange(6, device="cuda"))
    assert len(reads) == 3 * 3

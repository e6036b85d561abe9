"""CUDA without a GPU: fake tensors reject mixed devices and unexpected host reads."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from helpers.fake_devices import encode, fake_batch, fake_model
from helpers.small_models import batch, generate, nano

from ofa_exit.models import decoder_pass
from ofa_exit.models.ofa import OFAModel
from ofa_exit.plugin.criterions.mue import MuELoss
from ofa_exit.policies.measures import hidden_saturation
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime import exit_loop
from ofa_exit.testing import build_dictionary


def training_step(split: bool, device: str) -> tuple[OFAModel, torch.Tensor]:
    """The loss of every layer; also checks that all there is to log stays on the device."""
    model = fake_model(split, device=device).train()
    net_input = fake_batch(device)
    target = net_input["prev_output_tokens"]
    sample = {"net_input": net_input, "target": target, "ntokens": 15, "nsentences": 3}
    task = Namespace(target_dictionary=build_dictionary(60))
    loss, _, log = MuELoss(task, 0.1, "uniform", 0.0, 0, True, False)(model, sample)
    assert loss.device.type == device
    assert all(v.device.type == device for v in log.values() if torch.is_tensor(v))
    return model, loss


@pytest.mark.parametrize("split", [False, True])
def test_training_forward_stays_on_the_device(fake, split):
    training_step(split, "cuda")


@pytest.mark.parametrize("split", [False, True])
def test_training_step_reads_nothing_back(split):
    """Backward too; autograd wants a real device behind "cuda", so this one is on "meta"."""
    model, loss = training_step(split, "meta")
    loss.backward()
    assert any(p.grad is not None and p.grad.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("trace", [False, True])
def test_plain_generation_reads_nothing_back(fake, split, dtype, trace):
    """Encoder, decoder steps, beam reorder and a finished sentence, with no policy."""
    model = fake_model(split, dtype).eval()
    model.configure_exits(None, trace=trace)
    out, state = encode(model, dtype)
    tokens = torch.full((6, 1), 0, device="cuda")
    with torch.no_grad():
        for step in range(3):
            logits, _ = model.decoder(tokens, out, incremental_state=state)
            assert logits.device.type == "cuda" and logits.dtype == dtype
            order = torch.arange(6, device="cuda")
            if step == 1:  # one of three sentences has finished
                order = order[:4]
            model.decoder.reorder_incremental_state_scripting(state, order)
            out = model.encoder.reorder_encoder_out(out, order)
            tokens = torch.full((order.numel(), tokens.size(1) + 1), 6, device="cuda")
            if step == 1:
                break
    assert (len(model.last_trace.steps) == 2) if trace else (model.last_trace is None)


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_gated_steps_stay_on_the_device(fake, kv, monkeypatch):
    """Gates that stay shut: all of the bookkeeping, and at most one host read a layer."""
    model = fake_model().eval()
    model.configure_exits(SimilarityExit(2.0, 2.0, 2.0, 0.95, schedule="decay"), kv)
    out, state = encode(model, torch.float32)
    reads = []

    def nobody_exits(layers, state, exits, features):
        """What the one read would answer; everything before it runs on fake CUDA tensors."""
        assert exits.device.type == "cuda" and exits.shape == state.exit_mask.shape
        reads.append(1)
        return True

    monkeypatch.setattr(exit_loop, "exit_rows", nobody_exits)
    with torch.no_grad():
        for step in range(1, 4):
            tokens = torch.full((6, step), 6, device="cuda")
            logits, _ = model.decoder(tokens, out, incremental_state=state)
            assert logits.device.type == "cuda"
            model.decoder.reorder_incremental_state_scripting(state, torch.arange(6, device="cuda"))
    assert len(reads) == 3 * 3  # never after the last layer


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_growing_depths_fill_skipped_layers_on_the_device(fake, kv):
    """A shallow step followed by a deep one: K/V of the skipped layers, without any host read."""
    model = fake_model().eval()
    out, state = encode(model, torch.float32)
    for step, depth in enumerate((2, 4), start=1):
        model.configure_exits(StaticExit((6, 6, depth)), kv)
        tokens = torch.full((6, step), 6, device="cuda")
        with torch.no_grad():
            logits, _ = model.decoder(tokens, out, incremental_state=state)
        assert logits.device.type == "cuda"


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_compaction_stays_on_the_device(fake, kv, monkeypatch):
    """Open gates: samples leave the encoder, sentences leave the decoder, one finishes. Only what
    the host read would answer is scripted; all the rest runs on fake CUDA tensors."""
    reads, decoding = [], False

    def scripted(values):
        assert values.device.type == "cuda"
        reads.append(tuple(values.shape))
        if not decoding:
            return [True] + [False] * (values.numel() - 1) if values.dtype == torch.bool else [1]
        if values.dtype == torch.bool:  # who has left: all but the first sentence's two
            return [False] * 2 + [True] * (values.numel() - 2)
        left = values.numel() // 3  # with them, once one has finished, which sentences are left
        return [0] * 2 + [1] * (2 * left - 2) + list(range(left))

    monkeypatch.setattr(exit_loop, "to_host", scripted)
    monkeypatch.setattr(decoder_pass, "to_host", scripted)
    model = fake_model().eval()
    model.configure_exits(SimilarityExit(0.9, 0.9, 2.0, 0.9, schedule="static"), kv)
    out, state = encode(model, torch.float32)
    encoder_reads, hypotheses, decoding = len(reads), 6, True
    assert encoder_reads == 1 + 1 + 1  # images there are, and one gate for each pass of two layers
    with torch.no_grad():
        for step in range(1, 4):
            tokens = torch.full((hypotheses, step), 6, device="cuda")
            logits, _ = model.decoder(tokens, out, incremental_state=state)
            assert logits.device.type == "cuda" and logits.size(0) == hypotheses
            hypotheses = 4 if step == 2 else hypotheses
            order = torch.arange(hypotheses, device="cuda")
            model.decoder.reorder_incremental_state_scripting(state, order)
            out = model.encoder.reorder_encoder_out(out, order)
    assert len(reads) - encoder_reads == 3 * 3  # one a layer, never after the last


@pytest.mark.parametrize("keys", ["aba", "aaa"])
@torch.no_grad()
def test_equal_texts_are_found_without_a_read(fake, keys):
    model, inputs = fake_model(True).eval(), fake_batch("cuda")
    model.configure_exits(None, trace=True)
    del inputs["prev_output_tokens"]
    for _ in range(2):
        out = model.encoder(**inputs, text_keys=list(keys))
        assert out.states.device.type == "cuda" and len(out.states) == 3
    ran = model.last_trace.text_layers_run
    assert ran.device.type == "cuda" and len(ran) == len(set(keys))


def test_mixed_devices_would_be_noticed(fake):
    """The net these tests hang on: a CPU tensor among CUDA ones is an error under fake mode."""
    with pytest.raises(Exception, match="device"):
        torch.zeros(2, device="cuda") + torch.zeros(2, device="cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_decides_in_float32(dtype):
    """bf16 and fp16 on the CPU: gates see float32, and generation runs through."""
    model = nano().to(dtype)
    net_input = batch(3)
    net_input["patch_images"] = net_input["patch_images"].to(dtype)
    seen = []

    class Watching(SimilarityExit):
        def decoder_gate(self, inputs):
            seen.append(hidden_saturation(inputs.previous, inputs.current).dtype)
            return super().decoder_gate(inputs)

    model.configure_exits(Watching(0.9, 0.9, 2.0, 0.9, schedule="static"))
    hypotheses = generate(model, net_input)
    assert set(seen) == {torch.float32}
    assert all(torch.isfinite(h["positional_scores"]).all() for s in hypotheses for h in s)


def test_steps_keep_their_shapes_on_the_device(fake):
    """Within the cache's room, every step gives a layer inputs of the same shapes: what compiling
    or capturing a step asks for."""
    model = fake_model().eval()
    out, state = encode(model, torch.float32)
    shapes = []

    def note(layer, inputs, kwargs):
        flat = [*inputs[:2], *inputs[2], inputs[3]]
        shapes.append(tuple(tuple(tensor.shape) for tensor in flat))

    model.decoder.layers[1].register_forward_pre_hook(note, with_kwargs=True)
    attended = []
    attention = model.decoder.layers[1].self_attn
    attention.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[1].shape))
    with torch.no_grad():
        for step in range(1, 6):
            tokens = torch.full((6, step), 6, device="cuda")
            model.decoder(tokens, out, incremental_state=state)
            model.decoder.reorder_incremental_state_scripting(state, torch.arange(6, device="cuda"))
    assert len(shapes) == len(attended) == 5
    assert len(set(shapes)) == len(set(attended)) == 1

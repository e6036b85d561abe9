"""On a real GPU: the numbers of the official model, and tokens, layers and gradients of the CPU."""

import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers import task_files as files
from helpers.gpu_device import DEVICE
from helpers.paths import FIXTURES, ROOT
from helpers.small_models import VOCAB, batch, generate, nano, training_batch

from benchmarks.device_use import device_use
from ofa_exit.cli.verify.comparison import compare_arrays
from ofa_exit.plugin.criterions.mue import MuELoss
from ofa_exit.policies.confidence import ConfidenceExit
from ofa_exit.policies.entropy import EntropyExit
from ofa_exit.policies.patience import PatienceExit
from ofa_exit.policies.similarity import SimilarityExit
from ofa_exit.policies.static import StaticExit
from ofa_exit.runtime.drafts import Drafting
from ofa_exit.runtime.kv_cache import KV_MODES
from ofa_exit.runtime.token_exits import TokenExits
from ofa_exit.testing import build_dictionary

pytestmark = pytest.mark.gpu
POLICIES = {
    "none": None,
    "static": StaticExit((2, 3, 2)),
    "similarity": SimilarityExit(0.97, 0.97, decoder_threshold=0.9, schedule="static"),
    "confidence": ConfidenceExit(0.3),
    "entropy": EntropyExit(3.5),
    "patience": PatienceExit(1),
}
OF_HEADS = ("confidence", "entropy", "patience")
# What goes without a policy.
OTHERS = {
    "image tokens": {"token_exits": TokenExits(0.5)},
    "lossless": {"drafting": Drafting(3, 2)},
}
# Largest deviation relative to the largest value: a few units of the last place, summed up.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
HALVES = [torch.float16, torch.bfloat16]
if DEVICE == "cpu":  # float16 convolutions there take minutes
    HALVES.remove(torch.float16)
    del TOLERANCES[torch.float16]


def on_device(net_input, dtype=torch.float32):
    moved = {name: value.to(DEVICE) for name, value in net_input.items()}
    return {**moved, "patch_images": moved["patch_images"].to(dtype)}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_numbers_of_the_official_model(path, split, dtype):
    fixture = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = {name: stored[name] for name in stored.files}
    found = dict(compare_arrays(fixture, arrays, split, DEVICE, dtype))
    assert found
    for name, deviation in found.items():
        if not name.endswith("argmax"):  # near ties may flip
            assert deviation <= TOLERANCES[dtype], name


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("rows", [1, 4, 8, 32])
@pytest.mark.parametrize(
    ("policy", "kv"),
    # Heads with K/V of their own reject copy.
    [(p, kv) for p in POLICIES for kv in KV_MODES if kv != "copy" or p not in OF_HEADS],
)
def test_generation_is_that_of_the_cpu(policy, kv, rows, beam):
    exits = {"exit_layers": "1,2,4"} if policy in OF_HEADS else {}
    check_against_cpu(exits, (POLICIES[policy], kv), {}, rows, beam)


@pytest.mark.parametrize("rows", [1, 4, 8, 32])
@pytest.mark.parametrize("kind", OTHERS)
def test_image_tokens_and_drafts_are_those_of_the_cpu(kind, rows):
    check_against_cpu({}, (None,), OTHERS[kind], rows, beam=1)


def check_against_cpu(arguments, policy, exits, rows, beam):
    """Compare tokens, layers and scores of a batch; arguments are those of ``configure_exits``."""
    net_input, found = batch(rows), []
    for device in ("cpu", DEVICE):
        model = nano(**arguments).to(device)
        model.configure_exits(*policy, **exits)
        moved = {name: value.to(device) for name, value in net_input.items()}
        hyps = generate(model, moved, beam_size=beam)
        tokens = [[hyp["tokens"].tolist() for hyp in beam] for beam in hyps]
        scores = torch.stack([hyp["score"].cpu() for beam in hyps for hyp in beam])
        layers = model.last_trace and model.last_trace.depths(tokens)
        found.append((tokens, layers, scores))
    (tokens, layers, scores), (gpu_tokens, gpu_layers, gpu_scores) = found
    assert gpu_tokens == tokens and gpu_layers == layers
    torch.testing.assert_close(gpu_scores, scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_half_precision_generates(policy, dtype):
    exits = {"exit_layers": "1,2,4"} if policy in OF_HEADS else {}
    model = nano(**exits).to(DEVICE, dtype)
    model.configure_exits(POLICIES[policy], "propagate")
    hyps = generate(model, on_device(batch(4), dtype))
    assert all(hyp["score"].isfinite() for beam in hyps for hyp in beam)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("policy", ["static", "similarity", "confidence", "entropy", "patience"])
def test_a_layer_makes_the_host_wait_at_most_once(policy, rows):
    """Counted by the profiler, beyond what the search itself reads at each step."""
    exits = {"exit_layers": "1,2,4"} if policy in OF_HEADS else {}
    count = "copies_to_host" if DEVICE == "cuda" else "host_reads"
    model, net_input = nano(**exits).to(DEVICE), on_device(batch(rows))

    def waits(chosen):
        model.configure_exits(chosen, trace=True)
        # No word ends a sentence, so that every search has as many steps.
        used = device_use(lambda: generate(model, net_input, min_len=7), DEVICE)[count]
        return used, len(model.last_trace.steps)

    (full, full_steps), (gated, steps) = waits(None), waits(POLICIES[policy])
    assert steps == full_steps > 1
    layers = len(model.encoder.layers) + steps * len(model.decoder.layers)
    assert gated - full <= layers


def step(device, dtype):
    """The loss and all gradients of one training step, moved to the CPU."""
    torch.manual_seed(1)
    sample = training_batch()
    sample["target"] = sample["target"].to(device)
    sample["net_input"] = {k: v.to(device) for k, v in sample["net_input"].items()}
    # In eval mode: dropout draws other numbers on another device.
    model = nano().to(device)
    task = Namespace(target_dictionary=build_dictionary(VOCAB))
    criterion = MuELoss(task, 0.1, "uniform", 0.0, 0, False, False)
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        loss = criterion(model, sample)[0]
    loss.backward()
    grads = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach().cpu(), grads


def test_a_training_step_is_that_of_the_cpu():
    (loss, grads), (gpu_loss, gpu_grads) = step("cpu", torch.float32), step(DEVICE, torch.float32)
    torch.testing.assert_close(gpu_loss, loss, rtol=1e-4, atol=1e-4)
    assert gpu_grads.keys() == grads.keys()
    for name, grad in grads.items():
        scale = max(float(grad.abs().max()), 1e-3)
        assert float((gpu_grads[name] - grad).abs().max()) <= 1e-2 * scale, name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_training_step_in_half_precision(dtype):
    loss, grads = step(DEVICE, dtype)
    exact, _ = step(DEVICE, torch.float32)
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.1)
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_together(tmp_path):
    data = files.caption_folder(tmp_path / "data")
    command = [
        *[sys.executable, "-m", "fairseq_cli.train", str(data), "--user-dir", ROOT / "user_dir"],
        *["--task", "mue_caption", "--criterion", "mue_loss", "--optimizer", "adam", "--fp16"],
        *["--lr", "0.003", "--max-update", "2", "--batch-size", "3", "--num-workers", "0"],
        *["--distributed-world-size", "2", "--ddp-backend", "legacy_ddp", "--split-modalities"],
        *["--save-dir", str(tmp_path / "run"), *files.NANO, *files.SMALL],
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())

"""mue_loss in half precision, on CUDA, in several processes, and on the real model."""

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from helpers import exit_samples
from helpers.criterion_samples import PAD, Stub, batch, criterion, masks
from helpers.small_models import nano, training_batch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from ofa_exit.plugin.criterions.mue import MuELoss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_get_a_float32_loss(dtype):
    model, sample = Stub(), batch(8)
    expected = criterion()(model, sample)[0]
    half = copy.deepcopy(model).to(dtype)
    loss = criterion()(half, sample)[0]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
    assert half.embed.weight.grad.isfinite().all()


def test_autocast_reaches_the_recomputed_layers():
    model, sample = Stub(), batch(8)
    expected = criterion()(model, sample)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion()(model, sample)[0]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)


def on(device: str, sample: dict, convert=lambda x: x) -> dict:
    return {
        key: on(device, x, convert)
        if isinstance(x, dict)
        else convert(x).to(device)
        if torch.is_tensor(x)
        else x
        for key, x in sample.items()
    }


CASES = [("uniform", 0.0), ("last", 0.0), ("uniform", 0.5)]


def full_loss(weights: str, self_distil: float) -> tuple[MuELoss, dict]:
    """Return mue_loss with all options that create or read tensors."""
    sample = batch()
    sample.update(constraint_masks=masks(sample), conf=torch.rand(4))
    options = {"drop_worst_ratio": 0.2, "report_accuracy": True, "self_distil": self_distil}
    return criterion(layer_weights=weights, **options), sample


@pytest.mark.parametrize(("weights", "self_distil"), CASES)
def test_the_loss_never_waits_for_the_gpu(weights, self_distil):
    """Fake CUDA tensors have no values: mixing devices or reading one on the host raises."""
    loss, sample = full_loss(weights, self_distil)
    with FakeTensorMode() as mode:
        with torch.device("cuda"):
            model = Stub()
        model.num_updates = 1
        value, _, log = loss(model, on("cuda", sample, mode.from_tensor))
    assert value.device.type == log["correct_layer_3"].device.type == "cuda"


@pytest.mark.parametrize(("weights", "self_distil"), CASES)
def test_the_backward_pass_stays_on_the_device(weights, self_distil):
    """On meta tensors: without a GPU, fake CUDA tensors have no backward pass."""
    loss, sample = full_loss(weights, self_distil)
    model = Stub().to("meta")
    model.num_updates = 1
    loss(model, on("meta", sample))[0].backward()
    assert model.embed.weight.grad.device.type == "meta"


@pytest.mark.parametrize("learned", ["single", "cross"])
def test_learned_weights_stay_on_the_device(learned, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    built, batch = exit_samples.model(), exit_samples.sample()
    options = {"learned_weights": learned, "drop_worst_ratio": 0.2, "report_accuracy": True}
    loss = exit_samples.criterion("leebert_loss", **options)
    loss.prepare_training(built)
    loss, built = loss.to("meta"), built.to("meta")
    built.num_updates = 10
    loss(built, on("meta", batch))[0].backward()
    loss.optimizer_step(SimpleNamespace(step=lambda: None), 10)
    assert loss.loss_weights.alpha.device.type == "meta"


def distributed(model, backend: str) -> ModuleProxyWrapper:
    """Wrap the model as fairseq does for the two backends."""
    if backend == "legacy_ddp":
        return ModuleProxyWrapper(LegacyDistributedDataParallel(model, dist.group.WORLD))
    return ModuleProxyWrapper(DistributedDataParallel(model, find_unused_parameters=True))


def test_losses_of_the_real_model():
    model, sample = nano(), training_batch(3)
    target = sample["target"].flatten()

    def summed(logits):
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), target, ignore_index=PAD, reduction="sum"
        )

    with torch.no_grad():
        last, _, _ = criterion(layer_weights="last", label_smoothing=0)(model, sample)
        mean, _, log = criterion(label_smoothing=0)(model, sample)
        torch.testing.assert_close(last, summed(model(**sample["net_input"])[0]))
        _, extra = model(**sample["net_input"], features_only=True, all_layers=True)
        layers = [summed(model.output_layer(x)) for x in extra["layer_features"]]
    torch.testing.assert_close(mean, torch.stack(layers).mean())
    for i, layer in enumerate(layers):
        torch.testing.assert_close(log[f"loss_layer_{i + 1}"], layer)
    torch.testing.assert_close(log["nll_loss"], last)


def worker(rank: int, folder: Path, backend: str, model, samples: list) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(samples))
    wrapped, loss = distributed(model, backend), criterion()
    for _ in range(2):  # a second step finds out whether the first left the reducer ready
        wrapped.zero_grad()
        loss(wrapped, samples[rank])[0].backward()
        if backend == "legacy_ddp":
            wrapped.all_reduce_grads()
    if rank == 0:
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        torch.save(grads, folder / "grads.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
@pytest.mark.parametrize(
    ("build", "make_batch"), [(Stub, batch), (nano, training_batch)], ids=["stub", "ofa"]
)
def test_two_workers_get_the_gradients_of_one(build, make_batch, backend, tmp_path):
    model, samples = build(), [make_batch(2), make_batch(4)]
    arguments = (tmp_path, backend, model, samples)
    mp.start_processes(worker, arguments, nprocs=2, start_method="fork")
    grads = torch.load(tmp_path / "grads.pt")
    sum(criterion()(model, sample)[0] for sample in samples).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:  # the backends average, fairseq multiplies by workers
            torch.testing.assert_close(2 * grads[name], p.grad, rtol=1e-4, atol=1e-5)

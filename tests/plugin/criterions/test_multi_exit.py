"""multi_exit_loss and exit_heads_loss, with and without distillation, against slow loops."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from helpers.criterion_samples import criterion as mue_loss
from helpers.exit_samples import DEPTH, criterion, model, sample, slow_terms_of
from helpers.slow_losses import assert_same_gradients, gradients
from torch.nn.parallel import DistributedDataParallel

from ofa_exit.objectives import layerwise
from ofa_exit.plugin.errors import UsageError

TEACHERS = {
    "none": {},
    "final": {1: [6], 3: [6]},
    "mutual": {1: [3, 6], 3: [1, 6], 6: [1, 3]},
}


@pytest.mark.parametrize("distil", ["none", "final", "mutual"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("weights", "numbers"),
    [("rising", [0.1, 0.3, 0.6]), ("uniform", [1 / 3] * 3), ("3,2,5", [0.3, 0.2, 0.5])],
)
def test_joint_training_equals_the_slow_loop(distil, full, weights, numbers):
    built, batch = model(), sample(full=full)
    loss = criterion(
        "multi_exit_loss",
        layer_weights=weights,
        label_smoothing=0.1,
        distil=distil,
        distil_temperature=2.0,
        distil_weight=0.7,
    )
    loss.prepare_training(built)
    value, size, log = loss(built, batch)
    value.backward()
    ours = gradients(built)

    label, distilled = slow_terms_of(built, batch, temperature=2.0, epsilon=0.1)
    expected = 0.0
    for i, w in zip((1, 3, DEPTH), numbers):
        teachers = TEACHERS[distil].get(i, ())
        expected = expected + w * (label[i] + 0.7 * sum(distilled[i, j] for j in teachers))
        assert log[f"loss_layer_{i}"].item() == pytest.approx(label[i].item(), rel=1e-4)
        if teachers:
            summed = sum(distilled[i, j].item() for j in teachers)
            assert log[f"distil_layer_{i}"].item() == pytest.approx(summed, rel=1e-4)
        else:
            assert f"distil_layer_{i}" not in log
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert size == batch["ntokens"]
    assert_same_gradients(ours, gradients(built))


@pytest.mark.parametrize("distil", ["none", "final", "mutual"])
def test_heads_on_a_frozen_backbone_equal_the_slow_loop(distil):
    built, batch = model(dropout=0.0), sample()
    loss = criterion("exit_heads_loss", distil=distil)
    loss.prepare_training(built)
    built.train()
    value, _, log = loss(built, batch)
    value.backward()
    ours = gradients(built)
    assert ours and all(name.startswith("decoder.exits.") for name in ours)
    assert f"loss_layer_{DEPTH}" not in log

    label, distilled = slow_terms_of(built, batch)
    expected = sum(
        label[i] + sum(distilled[i, j] for j in TEACHERS[distil].get(i, ())) for i in (1, 3)
    )
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, gradients(built))


def test_shared_heads_without_exit_layers_are_the_layer_wise_loss():
    built, batch = model(None), sample()
    loss = criterion("multi_exit_loss", layer_weights="uniform", label_smoothing=0.1)
    loss.prepare_training(built)
    value = loss(built, batch)[0]
    value.backward()
    ours = gradients(built)
    expected = mue_loss(label_smoothing=0.1)(built, batch)[0]
    expected.backward()
    torch.testing.assert_close(value, expected)
    assert_same_gradients(ours, gradients(built))


def test_distillation_over_shared_heads_equals_the_slow_loop():
    built, batch = model(None), sample()
    value = criterion("multi_exit_loss", layer_weights="uniform", distil="mutual")(built, batch)[0]
    value.backward()
    ours = gradients(built)
    label, distilled = slow_terms_of(built, batch)
    expected = (sum(label.values()) + sum(distilled.values())) / DEPTH
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, gradients(built))


def test_teachers_are_projected_once(monkeypatch):
    monkeypatch.setattr(layerwise, "MAX_KEPT_NUMBERS", 0)
    built, batch = model(), sample()
    loss = criterion("multi_exit_loss", distil="mutual")
    calls = []
    project = loss.logits

    def counted(model, layer, features):
        calls.append((layer, torch.is_grad_enabled()))
        return project(model, layer, features)

    loss.logits = counted
    loss(built, batch)[0].backward()
    assert [layer for layer, grad in calls if not grad] == [1, 3, 6]
    # As students: once, and once more in the backward pass, except the last.
    assert sorted(layer for layer, grad in calls if grad) == [1, 1, 3, 3, 6]


def test_dropout_acts_on_what_heads_learn_but_not_on_what_they_teach():
    built, batch = model(dropout=0.5), sample(full=False)
    loss = criterion("multi_exit_loss", distil="mutual")
    features = {layer: torch.randn(9, 32) for layer in (1, 3)}
    expected = {layer: loss.logits(built, layer, x) for layer, x in features.items()}
    heads = built.decoder.exit_heads.train()  # the backbone stays in eval mode
    found = loss.teacher_logits(built, batch, None, features)
    for layer, x in features.items():
        assert torch.equal(found[layer], expected[layer])
        assert not torch.allclose(loss.logits(built, layer, x), expected[layer])
    assert all(module.training for module in heads.modules())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("multi_exit_loss", {"distil": "last"}, "--distil 'last': choose from none, final, mutual"),
        ("exit_heads_loss", {"distil_temperature": 0.0}, "--distil-temperature is 0.0; give"),
        ("multi_exit_loss", {"distil_temperature": -1.0}, "--distil-temperature is -1.0"),
        ("exit_heads_loss", {"distil_weight": 0.0}, "--distil-weight is 0.0; give .* above 0"),
    ],
)
def test_invalid_options_are_rejected_on_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        criterion(name, **options)
    assert "\n" not in str(error.value)


def test_models_must_have_what_is_trained():
    with pytest.raises(ValueError, match="3 numbers, but the loss is over 6 layers"):
        criterion("multi_exit_loss", layer_weights="1,2,3").prepare_training(model(None))
    for built in (model(None), model(exit_head="shared")):
        with pytest.raises(ValueError, match=r"exit_heads_loss trains exit heads.*--exit-layers"):
            criterion("exit_heads_loss").prepare_training(built)


@pytest.mark.parametrize(
    ("name", "weights"), [("multi_exit_loss", "1,0,1"), ("exit_heads_loss", "0,1")]
)
@pytest.mark.parametrize("kind", ["linear", "adapter"])
def test_heads_without_a_weight_are_rejected_on_one_line(name, weights, kind):
    layer = 3 if name == "multi_exit_loss" else 1
    loss = criterion(name, layer_weights=weights)
    message = (
        f"--layer-weights {weights} does not train the exit heads after decoder layers {layer}:"
    )
    with pytest.raises(UsageError, match=message) as error:
        loss.prepare_training(model(exit_head=kind))
    assert "\n" not in str(error.value)


def test_shared_heads_need_no_weight():
    built, batch = model(exit_head="shared"), sample()
    loss = criterion("multi_exit_loss", layer_weights="1,0,1")
    loss.prepare_training(built)
    log = loss(built, batch)[2]
    assert "loss_layer_1" in log and "loss_layer_3" not in log


# ------------------------------------------------------------------ data-parallel


def worker(rank: int, folder: Path, backend: str, built, loss, batches: list) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(batches))
    if backend == "legacy_ddp":
        wrapped = ModuleProxyWrapper(LegacyDistributedDataParallel(built, dist.group.WORLD))
    else:
        wrapped = ModuleProxyWrapper(DistributedDataParallel(built))
    for _ in range(2):
        wrapped.zero_grad()
        loss(wrapped, batches[rank])[0].backward()
        if backend == "legacy_ddp":
            wrapped.all_reduce_grads()
    if rank == 0:
        torch.save(gradients(built), folder / "grads.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
@pytest.mark.parametrize("name", ["multi_exit_loss", "exit_heads_loss"])
def test_two_workers_get_the_gradients_of_one(name, backend, tmp_path):
    built, batches = model(), [sample(2), sample(3)]
    loss = criterion(name, distil="mutual")
    loss.prepare_training(built)
    arguments = (tmp_path, backend, built, loss, batches)
    mp.start_processes(worker, arguments, nprocs=2, start_method="fork")
    ours = torch.load(tmp_path / "grads.pt")
    sum(loss(built, batch)[0] for batch in batches).backward()
    assert_same_gradients({n: 2 * gradient for n, gradient in ours.items()}, gradients(built))

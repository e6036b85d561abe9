"""deecap_loss on the real model, against the equation by hand."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.logging import metrics
from helpers.blipee_samples import TASK
from helpers.head_samples import DEPTH, SlowHeads, fresh, gradients, noisy, started
from helpers.small_models import nano, training_batch
from torch.nn.parallel import DistributedDataParallel

from ofa_exit.plugin.criterions.deecap import DeeCapLoss
from ofa_exit.plugin.criterions.multi_exit import MultiExitConfig
from ofa_exit.plugin.errors import UsageError

KINDS = ["imitation", "imitation_all"]


def criterion(**options) -> DeeCapLoss:
    config = MultiExitConfig(**{"sentence_avg": False, **options})
    return DeeCapLoss.build_criterion(config, TASK).train()


@torch.no_grad()
def by_hand(built, kind, sample, weights=range(1, DEPTH + 1)) -> tuple[list[float], float]:
    """The summed cross-entropy of each layer, and the summed imitation loss."""
    heads = SlowHeads(built, kind)
    _, extra = built(**sample["net_input"], return_layers=True)
    words, imitation = [0.0] * DEPTH, 0.0
    for row, column in sample["target"].ne(1).nonzero().tolist():
        states = [state[row, column] for state in extra["layer_states"][1:]]
        target = int(sample["target"][row, column])
        for layer in range(1, DEPTH + 1):
            last = layer == DEPTH
            scores = heads.shared(states[-1]) if last else heads.scores(states[:layer])
            words[layer - 1] -= float(scores.log_softmax(-1)[target])
        pooled = [heads.pooled(i, x) for i, x in enumerate(states[:-1], start=1)]
        pooled.append(heads.norm(states[-1], "layer_norm").tanh())
        for layer in range(1, DEPTH):
            distances = [
                1 - cosine(heads.imitated(later, pooled[layer - 1]), pooled[later - 1])
                for later in range(layer + 1, DEPTH + 1)
            ]
            imitation += sum(distances) / len(distances) / (DEPTH - 1)
    return words, imitation


def cosine(a, b) -> float:
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("weights", ["rising", "uniform", "0,0,1,0,2,3"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_equals_the_equation(kind, weights):
    built, sample = noisy(kind), training_batch()
    words, imitation = by_hand(built, kind, sample)
    shares = {"rising": range(1, 7), "uniform": [1] * 6, "0,0,1,0,2,3": [0, 0, 1, 0, 2, 3]}[weights]
    expected = sum(w * x for w, x in zip(shares, words, strict=True)) / sum(shares)
    loss, size, log = criterion(layer_weights=weights)(built, sample)
    assert size == sample["ntokens"]
    assert loss.item() == log["loss"].item() == pytest.approx(expected + imitation, rel=1e-4)
    assert log["imitation_loss"].item() == pytest.approx(imitation, rel=1e-4)
    assert log["nll_loss"].item() == pytest.approx(words[-1], rel=1e-4)
    for layer, (share, value) in enumerate(zip(shares, words, strict=True), start=1):
        assert (f"loss_layer_{layer}" in log) == bool(share)
        if share:
            assert log[f"loss_layer_{layer}"].item() == pytest.approx(value, rel=1e-4)


def test_dropped_tokens_do_not_change_the_balance():
    built, sample = noisy("imitation"), training_batch()
    built.set_num_updates(1)
    loss, kept, log = criterion(drop_worst_ratio=0.5)(built, sample)
    assert kept == sample["ntokens"] // 2
    words = sum(i * float(log[f"loss_layer_{i}"]) for i in range(1, DEPTH + 1)) / 21
    imitation = float(log["imitation_loss"]) / sample["ntokens"]
    assert loss.item() == pytest.approx(words + kept * imitation, rel=1e-4)


def test_closed_sets_and_sentence_averages():
    built, sample = noisy("imitation"), training_batch()
    free, _, log = criterion()(built, sample)
    allowed = torch.rand(*sample["target"].shape, 60) < 0.3
    sample["constraint_masks"] = allowed.scatter(2, sample["target"].unsqueeze(2), True)
    loss, size, other = criterion(sentence_avg=True)(built, sample)
    assert size == 3 and loss < free
    torch.testing.assert_close(log["imitation_loss"], other["imitation_loss"])


@pytest.mark.parametrize("start", [started, noisy])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_the_heads_learns(kind, start):
    built, sample = start(kind), training_batch()
    loss = criterion()
    loss.prepare_training(built)
    loss(built.train(), sample)[0].backward()
    names = {n for n, _ in built.named_parameters() if n.startswith("decoder.exits.")}
    assert names <= gradients(built).keys()


def test_the_imitation_trains_pools_imitators_and_the_upper_half():
    """Word losses of the last layer alone: all else has its gradient from the imitation."""
    built, sample = noisy("imitation"), training_batch()
    criterion(layer_weights="last")(built, sample)[0].backward()
    found = gradients(built).keys()
    names = {n for n, _ in built.named_parameters() if n.startswith("decoder.exits.")}
    assert names - found == {"decoder.exits.gate.weight", "decoder.exits.gate.bias"}


def test_weights_that_leave_a_gate_untrained_are_rejected():
    with pytest.raises(UsageError, match="--layer-weights last trains no imitation head"):
        criterion(layer_weights="last").prepare_training(started("imitation"))


def test_the_loss_falls():
    torch.manual_seed(2)
    built, sample = started("imitation", dropout=0.0).train(), training_batch()
    loss = criterion()
    optimizer = torch.optim.Adam(built.parameters(), 3e-3)
    found = []
    for _ in range(12):
        optimizer.zero_grad()
        value, _, log = loss(built, sample)
        value.backward()
        optimizer.step()
        found.append((value.item(), log["imitation_loss"].item()))
    assert found[-1][0] < 0.6 * found[0][0] and found[-1][1] < 0.8 * found[0][1]


def test_recomputed_activations_change_nothing():
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        built = noisy("imitation", checkpoint_activations=checkpointed, dropout=0.0).train()
        loss = criterion()(built, training_batch())[0]
        loss.backward()
        found.append((loss, gradients(built)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], msg=name)


@pytest.mark.parametrize("model", [nano, lambda: fresh(exit_head="linear", exit_layers="all")])
def test_other_heads_are_rejected(model):
    flags = "--exit-layers all and --exit-head imitation"
    with pytest.raises(ValueError, match=flags) as error:
        criterion().prepare_training(model())
    assert "\n" not in str(error.value)


def test_weights_for_another_depth_are_rejected():
    with pytest.raises(ValueError, match="2 numbers, but the loss is over 6 layers"):
        criterion(layer_weights="1,1").prepare_training(started("imitation"))


def test_heads_without_a_word_loss_learn_by_imitation():
    criterion(layer_weights="0,0,1,0,2,3").prepare_training(started("imitation"))


def test_metrics_are_per_token():
    built = noisy("imitation")
    logs = [criterion()(built, training_batch(rows))[2] for rows in (1, 4)]
    tokens = sum(log["ntokens"] for log in logs)
    with metrics.aggregate(new_root=True) as found:
        DeeCapLoss.reduce_metrics([*logs, dict.fromkeys(logs[0], 0)])
    expected = sum(float(log["imitation_loss"]) for log in logs) / tokens
    values = found.get_smoothed_values()
    assert values["imitation_loss"] == pytest.approx(expected, abs=1e-4)
    assert {"loss", "nll_loss", "ppl", "loss_layer_1", "loss_layer_6"} <= values.keys()
    with metrics.aggregate(new_root=True) as found:
        DeeCapLoss.reduce_metrics([dict.fromkeys(logs[0], 0)])
    assert not found.get_smoothed_values()


# ------------------------------------------------------------------ data-parallel


def worker(rank: int, folder: Path, backend: str, built, samples: list) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(samples))
    if backend == "legacy_ddp":
        wrapped = ModuleProxyWrapper(LegacyDistributedDataParallel(built, dist.group.WORLD))
    else:  # fairseq's default, which does not look for unused parameters
        wrapped = ModuleProxyWrapper(DistributedDataParallel(built))
    for _ in range(2):  # a second pass would stop at parameters without a gradient
        wrapped.zero_grad()
        criterion()(wrapped, samples[rank])[0].backward()
        if backend == "legacy_ddp":
            wrapped.all_reduce_grads()
    if rank == 0:
        torch.save(gradients(built), folder / "grads.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_two_workers_get_the_gradients_of_one(backend, tmp_path):
    built = noisy("imitation", dropout=0.0).train()
    samples = [training_batch(2), training_batch(4)]
    mp.start_processes(worker, (tmp_path, backend, built, samples), nprocs=2, start_method="fork")
    grads = torch.load(tmp_path / "grads.pt")
    built.zero_grad()
    # Batch norm of the stem sees each worker's images alone: so does this loop.
    sum(criterion()(built, sample)[0] for sample in samples).backward()
    wanted = gradients(built)
    assert wanted.keys() == grads.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(2 * grads[name], gradient, rtol=1e-3, atol=1e-5, msg=name)

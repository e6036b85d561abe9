"""leebert_loss against slow loops: the loss, the gradient of its weights, and their updates."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.logging import metrics
from helpers import task_files as files
from helpers.exit_samples import (
    DEPTH,
    criterion,
    model,
    sample,
    slow_terms,
    slow_terms_of,
)
from helpers.leebert_samples import Optimizer, prepared, set_alpha
from helpers.slow_losses import assert_same_gradients, at_targets, gradients

from ofa_exit.plugin.criterions.leebert import CROSS_LEVEL, LeeBertLoss, first_half

EXITS = (1, 3, DEPTH)
TERMS = [(1, 1), (1, 3), (1, 6), (3, 3), (3, 1), (3, 6), (6, 6), (6, 1), (6, 3)]


def part(label: dict, distilled: dict, term: tuple[int, int]) -> torch.Tensor:
    return label[term[0]] if term[0] == term[1] else distilled[term]


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("learned", ["none", "single", "bilevel", "cross"])
@pytest.mark.parametrize("full", [False, True])
def test_loss_and_gradients_equal_the_slow_loop(learned, full):
    # In float64: rounding in the stem's float32 convolutions differs by machine.
    built, batch = model().double(), sample(full=full)
    batch["net_input"]["patch_images"] = batch["net_input"]["patch_images"].double()
    loss = prepared(built, learned_weights=learned, label_smoothing=0.1, distil_temperature=2.0)
    assert loss.terms == TERMS
    weights = torch.ones(9).double()
    if learned != "none":
        weights = 9 * set_alpha(loss).double().softmax(0)
    value, size, log = loss(built, batch)
    value.backward()
    ours = gradients(built)

    label, distilled = slow_terms_of(built, batch, temperature=2.0, epsilon=0.1)
    expected = sum(w * part(label, distilled, term) for w, term in zip(weights, TERMS))
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert size == batch["ntokens"]
    assert_same_gradients(ours, gradients(built))
    for i in EXITS:
        assert log[f"loss_layer_{i}"].item() == pytest.approx(label[i].item(), rel=1e-4)


def test_equal_weights_without_distillation_are_the_uniform_loss():
    built, batch = model(), sample()
    expected = criterion("multi_exit_loss", layer_weights="uniform")(built, batch)[0]
    for learned in ("none", "cross"):
        value = prepared(built, learned_weights=learned, distil="none")(built, batch)[0]
        torch.testing.assert_close(value, len(EXITS) * expected)


def test_equal_weights_are_those_of_mutual_distillation():
    built, batch = model(), sample()
    expected = criterion("multi_exit_loss", layer_weights="uniform", distil="mutual")(built, batch)
    value = prepared(built, learned_weights="none")(built, batch)[0]
    torch.testing.assert_close(value, len(EXITS) * expected[0])


def test_validation_is_the_unweighted_loss_of_the_labels():
    built, batch = model(), sample()
    loss = prepared(built, learned_weights="cross")
    set_alpha(loss)
    value, _, log = loss.eval()(built, batch)
    label, _ = slow_terms_of(built, batch)
    assert value.item() == pytest.approx(sum(label.values()).item() / 3, rel=1e-5)
    assert loss.loss_weights.alpha.grad is None
    assert not any(key.startswith(("distil", "weight")) for key in log)


# ------------------------------------------------------------------ the gradient of the weights


def classifiers(built) -> dict[int, list[torch.Tensor]]:
    """What scores words after each exit: the norm's parameters, if it is a head's, and U."""
    found = {}
    for i in (1, 3):
        head = built.decoder.exit_heads[str(i)]
        found[i] = [head["norm"].weight, head["norm"].bias, head["output_projection"].weight]
    return {**found, DEPTH: [built.decoder.output_projection.weight]}


def slow_outer_loss(built, batch, alpha: torch.Tensor, step: float) -> tuple:
    """L_out after a step on L_in of the other half, and L_in, as functions of α; in float64."""
    tokens = at_targets(batch)
    columns = batch["target"].size(1)
    _, extra = built(**batch["net_input"], exit_features=True)
    with torch.no_grad():
        final, _ = built(**batch["net_input"], features_only=True)
    states = {i: extra["head_features"][i] if i < DEPTH else final for i in EXITS}
    states = {i: x.detach().double().flatten(0, 1)[tokens["rows"]] for i, x in states.items()}
    phi = {
        i: [p.detach().double().requires_grad_() for p in ps]
        for i, ps in classifiers(built).items()
    }

    def logits(values: dict) -> dict:
        found = {}
        for i, x in states.items():
            *norm, matrix = values[i]
            found[i] = (F.layer_norm(x, x.shape[-1:], *norm) if norm else x) @ matrix.t()
        return found

    halves = []
    keys = batch["image_keys"].tolist()
    for wanted in (True, False):
        chosen = [
            m
            for m, n in enumerate(tokens["rows"])
            if bool(first_half(torch.tensor(keys[n // columns]))) == wanted
        ]
        some = {
            key: None if value is None else [value[m] for m in chosen]
            for key, value in tokens.items()
        }
        halves.append((chosen, some))
    (first, first_tokens), (second, second_tokens) = halves
    assert first and second

    weights = 9 * alpha.softmax(0)
    label, distilled = slow_terms({i: z[first] for i, z in logits(phi).items()}, first_tokens)
    inner = sum(w * part(label, distilled, t) for w, t in zip(weights, TERMS)) / len(first)
    flat = [p for ps in phi.values() for p in ps]
    slopes = iter(torch.autograd.grad(inner, flat, create_graph=True))
    moved = {i: [p - step * next(slopes) for p in ps] for i, ps in phi.items()}
    label, _ = slow_terms({i: z[second] for i, z in logits(moved).items()}, second_tokens)
    return sum(label.values()) / 3 / len(second), inner


@pytest.mark.parametrize("learned", ["single", "bilevel", "cross"])
@pytest.mark.parametrize("full", [False, True])
def test_the_gradient_of_the_weights_equals_the_slow_loop(learned, full):
    built, batch = model(), sample(4, full=full)
    loss = prepared(built, learned_weights=learned, inner_lr=0.3)
    alpha = set_alpha(loss).double().requires_grad_()
    loss(built, batch)
    if learned == "single":
        label, distilled = slow_terms_of(built, batch)
        weights = 9 * alpha.softmax(0)
        slow = (
            sum(w * part(label, distilled, t).detach() for w, t in zip(weights, TERMS))
            / batch["ntokens"]
        )
    else:
        outer, inner = slow_outer_loss(built, batch, alpha, 0.3)
        slow = outer + (CROSS_LEVEL * inner if learned == "cross" else 0)
    (expected,) = torch.autograd.grad(slow, alpha)
    torch.testing.assert_close(loss.loss_weights.alpha.grad, expected.float(), rtol=1e-3, atol=1e-6)


def test_the_gradient_of_the_weights_has_no_dropout():
    built, batch = model(dropout=0.5), sample(4)
    found = []
    for training in (False, True):
        loss = prepared(built, learned_weights="cross")
        built.decoder.exit_heads.train(training)  # the backbone stays in eval mode
        value = loss(built, batch)[0].item()
        found.append((loss.loss_weights.alpha.grad, value))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] != found[1][1]  # in the loss itself it acts


def test_tokens_without_a_half_cost_nothing():
    """All rows in one half: L_out is 0, and so is its gradient."""
    built, batch = model(), sample(2)
    batch["image_keys"] = torch.tensor([7, 7])
    loss = prepared(built, learned_weights="bilevel")
    loss(built, batch)
    assert loss.loss_weights.alpha.grad.abs().max() == 0


def test_captions_of_an_image_share_a_half(tmp_path):
    """The same bytes, wherever their rows are; rows without an image have a half of their own."""
    data, images = files.caption_folder(tmp_path), 8
    fields = [files.image_field("red", side=10 + number) for number in range(images)]
    rows = [files.caption_row(n, image=fields[n % images]) for n in range(4 * images)]
    rows += [files.caption_row(n, image="") for n in range(100, 116)]
    files.write_tsv(data / "train.tsv", rows)
    for group in (False, True):
        task = files.setup("mue_caption", data, seed=1, group_images=group)
        task.load_dataset("train")
        dataset = task.dataset("train")
        sample = dataset.collater([dataset[number] for number in range(len(rows))])
        half = first_half(sample["image_keys"])
        by_image = half[: 4 * images].view(4, images)
        assert (by_image == by_image[0]).all() and len(by_image[0].unique()) == 2
        assert len(half[4 * images :].unique()) == 2


def test_the_halves_are_halves_of_the_rows():
    half = first_half(torch.arange(100_000))
    assert half.float().mean().item() == pytest.approx(0.5, abs=0.01)
    for period in (2, 3, 4, 5, 10, 16):  # no rule of the file's order is one of the halves
        for start in range(period):
            assert half[start::period].float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(half, first_half(torch.arange(100_000)))


# ------------------------------------------------------------------ what is learned


def draw_labels(kind: str, target: torch.Tensor) -> torch.Tensor:
    if kind == "shuffled":
        return target[torch.randperm(len(target))]
    return torch.randint(4, 60, target.shape)


@pytest.mark.parametrize(
    ("learned", "kind"),
    # Shuffled labels still teach how often each word occurs, which is a use that bilevel sees.
    [("single", "shuffled"), ("cross", "shuffled"), ("bilevel", "random")],
)
def test_an_exit_with_wrong_labels_loses_weight(learned, kind):
    """The last layer's labels follow from the word before; the head's are drawn every time."""
    built, batch = model("3"), sample(8, full=False)
    batch["target"] = 4 + batch["net_input"]["prev_output_tokens"] % 4
    batch["ntokens"] = count = batch["target"].numel()
    options = {"weights_lr": 0.05, "weights_interval": 1, "inner_lr": 0.1, "distil": "none"}
    loss = prepared(built, learned_weights=learned, **options)
    assert loss.terms == [(3, 3), (6, 6)]
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-3)
    score = loss.score

    def noisy(model, layer, features, tokens, *rest):
        if layer == 3:
            tokens = dataclasses.replace(tokens, target=labels)
        return score(model, layer, features, tokens, *rest)

    loss.score = noisy
    for update in range(20):
        built.num_updates = update
        labels = draw_labels(kind, batch["target"].flatten())
        optimizer.zero_grad()
        (loss(built, batch)[0] / count).backward()
        loss.optimizer_step(optimizer, update)
    wrong, right = loss.loss_weights().tolist()
    assert wrong < 0.6 and right > 1.4


def test_weights_are_logged():
    built, batch = model(), sample()
    loss = prepared(built, learned_weights="cross")
    weights = 9 * set_alpha(loss).softmax(0)
    logs = [loss(built, batch)[2], loss(built, sample(2))[2]]
    for given in (logs, [{key: sum(log[key] for log in logs) for key in logs[0]}]):
        with metrics.aggregate(new_root=True) as found:
            LeeBertLoss.reduce_metrics(given)
        values = found.get_smoothed_values()
        for k, i in enumerate(EXITS):
            assert values[f"weight_layer_{i}"] == pytest.approx(weights[3 * k].item(), abs=1e-3)
        assert values["loss_layer_3"] > 0
    with metrics.aggregate(new_root=True) as found:
        LeeBertLoss.reduce_metrics([dict.fromkeys(logs[0], 0)])
    assert found.get_smoothed_values() == {}


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learned_weights": "double"}, "--learned-weights 'double': choose from none, single, b"),
        ({"distil": "all"}, "--distil 'all': choose from none, final, mutual"),
        ({"distil_temperature": 0.0}, "--distil-temperature is 0.0; give a number above 0"),
        ({"weights_lr": 0.0}, "--weights-lr is 0.0"),
        ({"inner_lr": math.inf}, "--inner-lr is inf"),
        ({"weights_interval": 0}, "--weights-interval is 0; give at least 1"),
        (
            {"ddp_backend": "pytorch_ddp", "distributed_world_size": 2},
            "--learned-weights cross in several processes needs --ddp-backend legacy_ddp",
        ),
    ],
)
def test_invalid_options_are_rejected_on_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        criterion("leebert_loss", **options)
    assert "\n" not in str(error.value)


def test_learned_weights_need_exits():
    built = model(None)
    with pytest.raises(ValueError, match=r"--learned-weights single .*--exit-layers all"):
        prepared(built, learned_weights="single")
    assert len(prepared(built, learned_weights="none").terms) == DEPTH**2


def test_several_processes_without_learned_weights_may_use_any_backend():
    options = {"ddp_backend": "pytorch_ddp", "distributed_world_size": 2}
    criterion("leebert_loss", learned_weights="none", **options)
    criterion("leebert_loss", ddp_backend="pytorch_ddp", distributed_world_size=1)
    criterion("leebert_loss", ddp_backend="legacy_ddp", distributed_world_size=2)


# ------------------------------------------------------------------ data-parallel


def worker(rank: int, folder: Path, built, loss, batches: list) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(batches))
    # As fairseq's trainer wraps the model, and a criterion that has parameters.
    wrapped, wrapped_loss = (
        ModuleProxyWrapper(LegacyDistributedDataParallel(module, dist.group.WORLD))
        for module in (built, loss)
    )
    wrapped_loss(wrapped, batches[rank])[0].backward()
    for module in (wrapped, wrapped_loss):
        module.all_reduce_grads()
    own = loss.loss_weights.alpha.grad.clone()
    loss.optimizer_step(Optimizer(), 0)
    torch.save((gradients(built), own, loss.loss_weights.alpha.detach()), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_learn_the_weights_of_both(tmp_path):
    built, batches = model(), [sample(4), sample(5)]
    loss = prepared(built, learned_weights="cross", weights_lr=0.01)
    set_alpha(loss)
    mp.start_processes(worker, (tmp_path, built, loss, batches), nprocs=2, start_method="fork")
    (ours, first, alpha), (_, second, other) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    assert torch.equal(alpha, other) and not torch.equal(first, second)
    reference = torch.nn.Parameter(loss.loss_weights.alpha.clone())
    reference.grad = (first + second) / 2
    torch.optim.Adam([reference], lr=0.01).step()
    torch.testing.assert_close(alpha, reference.detach())
    sum(loss(built, batch)[0] for batch in batches).backward()
    assert_same_gradients({n: 2 * gradient for n, gradient in ours.items()}, gradients(built))

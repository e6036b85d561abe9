"""mue_loss on a small stand-in for the model, against loops written from Eqs. 12 and 13."""

import argparse
import copy
import math
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fairseq.criterions import build_criterion
from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.logging import metrics
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from ofa_exit.plugin.criterions import MuELoss, MuELossConfig

PAD, WORDS, LAYERS = 1, 23, 3


class Stub(nn.Module):
    """A word's features pass through linear layers; what the criterion asks of a model."""

    def __init__(self, words: int = WORDS):
        super().__init__()
        self.embed = nn.Embedding(words, 6)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(LAYERS))
        self.unused = nn.Linear(2, 2)  # as OFA has for image generation
        self.num_updates = 0
        self.asked: dict = {}

    def forward(self, prev_output_tokens, **asked):
        self.asked = asked
        x, features = self.embed(prev_output_tokens), []
        for layer in self.decoder.layers:
            x = x + layer(x).tanh()
            features.append(x)
        return x, {"layer_features": features} if asked.get("all_layers") else {}

    def output_layer(self, features):
        return features @ self.embed.weight.t()


def task():
    dictionary = Dictionary()
    assert dictionary.pad() == PAD
    return SimpleNamespace(target_dictionary=dictionary)


def criterion(**options) -> MuELoss:
    options = {"sentence_avg": False, "label_smoothing": 0.1, **options}
    return MuELoss.build_criterion(MuELossConfig(**options), task()).train()


def batch(rows: int = 4, **extra) -> dict:
    """Targets of different lengths after prompts of different lengths, padded on the right."""
    target = torch.full((rows, 7), PAD)
    for row in range(rows):
        length = 1 + row % 4
        target[row, row % 3 : row % 3 + length] = torch.randint(4, WORDS, (length,))
    return {
        "id": torch.arange(rows),
        "net_input": {"prev_output_tokens": torch.randint(4, WORDS, (rows, 7))},
        "target": target,
        "ntokens": int(target.ne(PAD).sum()),
        "nsentences": rows,
        **extra,
    }


@torch.no_grad()
def slow_layer_losses(model, sample, epsilon, layer) -> list[float]:
    """Each token's smoothed loss at one layer, from the definition, in Python numbers."""
    prev = sample["net_input"]["prev_output_tokens"]
    allowed, conf = sample.get("constraint_masks"), sample.get("conf")
    losses = []
    for row, tokens in enumerate(prev.tolist()):
        for place, token in enumerate(tokens):
            target = int(sample["target"][row, place])
            if target == PAD:
                continue
            x = model.embed.weight[token]
            for linear in model.decoder.layers[: layer + 1]:
                x = x + torch.tanh(linear.weight @ x + linear.bias)
            logits = [float(x @ word) for word in model.embed.weight]
            words = [v for v in range(WORDS) if allowed is None or allowed[row, place, v]]
            norm = math.log(sum(math.exp(logits[v]) for v in words))
            scale = 1.0 if conf is None else float(conf[row])
            logp = {v: scale * (logits[v] - norm) for v in words}
            eps_i = epsilon / (len(words) - 1 if allowed is None else len(words) - 1 + 1e-6)
            losses.append(-(1 - epsilon - eps_i) * logp[target] - eps_i * sum(logp.values()))
    return losses


def masks(sample) -> torch.Tensor:
    allowed = torch.rand(*sample["target"].shape, WORDS) < 0.3
    return allowed.scatter(2, sample["target"].unsqueeze(2), True)


@pytest.mark.parametrize("weights", ["uniform", "last", "1,0,3"])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("confident", [False, True])
def test_loss_equals_the_slow_loop(weights, constrained, confident):
    model, sample = Stub(), batch()
    if constrained:
        sample["constraint_masks"] = masks(sample)
    if confident:
        sample["conf"] = torch.rand(4)
    loss, sample_size, log = criterion(layer_weights=weights)(model, sample)

    shares = {"uniform": [1 / 3] * 3, "last": [0, 0, 1], "1,0,3": [0.25, 0, 0.75]}[weights]
    layers = [sum(slow_layer_losses(model, sample, 0.1, i)) for i in range(LAYERS)]
    mean = sum(w * x for w, x in zip(shares, layers, strict=True))
    assert loss.item() == pytest.approx(mean, rel=1e-5)
    assert log["loss"].item() == pytest.approx(mean, rel=1e-5)
    assert sample_size == log["sample_size"] == sample["ntokens"]
    for layer, share in enumerate(shares):
        key = f"loss_layer_{layer + 1}"
        if share:
            assert log[key].item() == pytest.approx(layers[layer], rel=1e-5)
        else:
            assert key not in log
    nll = sum(slow_layer_losses(model, sample, 0.0, LAYERS - 1))
    assert log["nll_loss"].item() == pytest.approx(nll, rel=1e-5)


def test_the_last_layer_alone_is_fairseqs_own_loss():
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    model, sample = Stub(), batch()
    ours, _, log = criterion(layer_weights="last")(model, sample)
    assert model.asked == {"features_only": True}  # the other layers were not even kept
    features, _ = model(**sample["net_input"])
    lprobs = model.output_layer(features).log_softmax(-1).flatten(0, 1)
    loss, nll = label_smoothed_nll_loss(lprobs, sample["target"].flatten(), 0.1, PAD)
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(log["nll_loss"], nll)


def test_gradients_are_the_mean_of_the_layers():
    model, sample = Stub(), batch()
    criterion()(model, sample)[0].backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i in range(LAYERS):
        _, extra = model(**sample["net_input"], all_layers=True)
        x = extra["layer_features"][i].flatten(0, 1)
        target = sample["target"].flatten()
        logits = model.output_layer(x)[target.ne(PAD)]
        loss = nn.functional.cross_entropy(
            logits,
            target[target.ne(PAD)],
            label_smoothing=0.1 * WORDS / (WORDS - 1),
            reduction="sum",
        )
        (loss / LAYERS).backward()
    assert ours.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name], p.grad)


def test_padding_and_other_rows_change_nothing():
    model, sample = Stub(), batch(5)
    whole = criterion()(model, sample)[0]
    parts = []
    for row in range(5):
        end = int(sample["target"][row].ne(PAD).nonzero().max()) + 1
        one = {
            "id": sample["id"][row : row + 1],
            "net_input": {
                "prev_output_tokens": sample["net_input"]["prev_output_tokens"][row : row + 1, :end]
            },
            "target": sample["target"][row : row + 1, :end],
            "ntokens": int(sample["target"][row].ne(PAD).sum()),
            "nsentences": 1,
        }
        parts.append(criterion()(model, one)[0])
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_drop_worst_starts_after_its_update_and_not_in_validation():
    model, sample = Stub(), batch()
    losses = sorted(slow_layer_losses(model, sample, 0.1, LAYERS - 1))
    kept = int(len(losses) * 0.7)
    assert 0 < kept < len(losses)
    loss = criterion(layer_weights="last", drop_worst_ratio=0.3, drop_worst_after=5)
    for updates, tokens in ((0, len(losses)), (5, len(losses)), (6, kept)):
        model.num_updates = updates
        value, sample_size, log = loss(model, sample)
        assert value.item() == pytest.approx(sum(losses[:tokens]), rel=1e-5)
        assert sample_size == tokens
        assert log["ntokens"] == len(losses)
    assert loss.eval()(model, sample)[1] == len(losses)


def test_each_layer_drops_its_own_worst():
    model, sample = Stub(), batch()
    model.num_updates = 1
    _, kept, log = criterion(drop_worst_ratio=0.3)(model, sample)
    for layer in range(LAYERS):
        losses = sorted(slow_layer_losses(model, sample, 0.1, layer))
        expected = sum(losses[:kept])
        assert log[f"loss_layer_{layer + 1}"].item() == pytest.approx(expected, rel=1e-5)


def test_sentence_average_and_accuracy():
    model, sample = Stub(), batch()
    sample["constraint_masks"] = masks(sample)
    _, sample_size, log = criterion(sentence_avg=True, report_accuracy=True)(model, sample)
    assert sample_size == 4
    _, extra = model(**sample["net_input"], all_layers=True)
    for layer, x in enumerate(extra["layer_features"]):
        logits = model.output_layer(x).masked_fill(~sample["constraint_masks"], -math.inf)
        right = logits.argmax(-1).eq(sample["target"]) & sample["target"].ne(PAD)
        assert log[f"correct_layer_{layer + 1}"].item() == right.sum().item()


def logged(logs) -> dict:
    with metrics.aggregate(new_root=True) as agg:
        MuELoss.reduce_metrics(logs)
    return agg.get_smoothed_values()


def test_metrics_weigh_workers_by_their_tokens():
    model, loss = Stub(), criterion(report_accuracy=True)
    logs = [loss(model, batch(rows))[2] for rows in (1, 4, 6)]
    apart = logged(logs)
    summed = logged([{key: sum(log[key] for log in logs) for key in logs[0]}])
    assert apart == pytest.approx(summed)
    tokens = sum(log["ntokens"] for log in logs)
    for key in ("loss", "nll_loss", "loss_layer_1", "loss_layer_3"):
        expected = sum(log[key].item() for log in logs) / tokens / math.log(2)
        assert apart[key] == pytest.approx(expected, abs=1e-3)
    right = sum(log["correct_layer_2"].item() for log in logs)
    assert apart["acc_layer_2"] == pytest.approx(100 * right / tokens, abs=1e-2)
    assert apart["ppl"] == pytest.approx(2 ** apart["nll_loss"], rel=1e-2)
    assert MuELoss.logging_outputs_can_be_summed()


def test_metrics_average_over_batches_by_their_tokens():
    model, loss = Stub(), criterion(report_accuracy=True)
    logs = [loss(model, batch(rows))[2] for rows in (1, 6)]
    with metrics.aggregate(new_root=True) as agg:
        for log in logs:
            MuELoss.reduce_metrics([log])
    assert agg.get_smoothed_values() == pytest.approx(logged(logs), abs=2e-3, rel=2e-3)


def test_placeholders_of_idle_workers_log_nothing():
    assert logged([]) == {}
    log = criterion()(Stub(), batch())[2]
    assert logged([dict.fromkeys(log, 0)]) == {}
    assert logged([log, dict.fromkeys(log, 0)]) == logged([log])


def test_batches_without_targets_are_refused():
    model = Stub()
    with pytest.raises(ValueError, match="without target tokens"):
        criterion()(model, {})
    sample = batch()
    sample["target"].fill_(PAD)
    sample["ntokens"] = 0
    with pytest.raises(ValueError, match=r"rows \[0, 1, 2, 3\]"):
        criterion()(model, sample)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("drop_worst_ratio", 1.0),
        ("drop_worst_after", -1),
        ("layer_weights", "first"),
    ],
)
def test_nonsense_options_are_refused(option, value):
    with pytest.raises(ValueError):
        criterion(**{option: value})


def test_weights_for_another_depth_are_refused():
    with pytest.raises(ValueError, match="2 numbers, but the decoder has 3 layers"):
        criterion(layer_weights="1,1")(Stub(), batch())


def test_the_command_line_builds_it():
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, MuELossConfig())
    args = parser.parse_args(["--layer-weights", "last", "--report-accuracy"])
    args.criterion, args.sentence_avg = "mue_loss", True
    built = build_criterion(args, task())
    assert (built.layer_weights, built.report_accuracy, built.sentence_avg) == ("last", True, True)
    assert built.label_smoothing == 0.0


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


def full_loss(weights: str) -> tuple[MuELoss, dict]:
    """With every option that makes or reads tensors."""
    sample = batch()
    sample.update(constraint_masks=masks(sample), conf=torch.rand(4))
    loss = criterion(layer_weights=weights, drop_worst_ratio=0.2, report_accuracy=True)
    return loss, sample


@pytest.mark.parametrize("weights", ["uniform", "last"])
def test_a_gpu_is_never_waited_for(weights):
    """Fake CUDA tensors have no values: mixing devices or reading one on the host raises."""
    loss, sample = full_loss(weights)
    with FakeTensorMode() as mode:
        with torch.device("cuda"):
            model = Stub()
        model.num_updates = 1
        value, _, log = loss(model, on("cuda", sample, mode.from_tensor))
    assert value.device.type == log["correct_layer_3"].device.type == "cuda"


@pytest.mark.parametrize("weights", ["uniform", "last"])
def test_nor_in_the_backward_pass(weights):
    """Tensors without values again; the fake CUDA ones have no backward without a GPU."""
    loss, sample = full_loss(weights)
    model = Stub().to("meta")
    model.num_updates = 1
    loss(model, on("meta", sample))[0].backward()
    assert model.embed.weight.grad.device.type == "meta"


def distributed(model, backend: str) -> ModuleProxyWrapper:
    """The wrappers that fairseq makes for the two backends."""
    if backend == "legacy_ddp":
        return ModuleProxyWrapper(LegacyDistributedDataParallel(model, dist.group.WORLD))
    return ModuleProxyWrapper(DistributedDataParallel(model, find_unused_parameters=True))


def ofa_batch(rows: int) -> dict:
    """For the real model: one row has no image, targets are of different lengths."""
    net_input = helpers.batch(rows)
    target = torch.randint(4, helpers.VOCAB, net_input["prev_output_tokens"].shape)
    for row in range(rows):
        target[row, 2 + row :] = PAD
    return {
        "id": torch.arange(rows),
        "net_input": net_input,
        "target": target,
        "ntokens": int(target.ne(PAD).sum()),
        "nsentences": rows,
    }


def test_ofa_itself():
    model, sample = helpers.nano(), ofa_batch(3)
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
    ("build", "make_batch"), [(Stub, batch), (helpers.nano, ofa_batch)], ids=["stub", "ofa"]
)
def test_two_workers_get_the_gradients_of_one(build, make_batch, backend, tmp_path):
    model, samples = build(), [make_batch(2), make_batch(4)]
    arguments = (tmp_path, backend, model, samples)
    mp.start_processes(worker, arguments, nprocs=2, start_method="fork")
    grads = torch.load(tmp_path / "grads.pt")
    sum(criterion()(model, sample)[0] for sample in samples).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:  # the backends average over workers, which fairseq makes good for
            torch.testing.assert_close(2 * grads[name], p.grad, rtol=1e-4, atol=1e-5)

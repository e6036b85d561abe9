"""mue_loss on a small stand-in for the model, against slow loops (MuE Eqs. 12 and 13)."""

import argparse
import math

import pytest
import torch
from fairseq.criterions import build_criterion
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.logging import metrics
from helpers.criterion_samples import LAYERS, PAD, WORDS, Stub, batch, criterion, masks, task
from torch import nn

from ofa_exit.plugin.criterions.mue import MuELoss, MuELossConfig


@torch.no_grad()
def slow_layer_losses(model, sample, epsilon, layer) -> list[float]:
    """Return each token's smoothed loss at one layer, from the definition."""
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


def test_the_last_layers_loss_equals_fairseqs():
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


def test_metrics_weight_workers_by_tokens():
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


def test_metrics_weight_batches_by_tokens():
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


def test_batches_without_targets_are_rejected():
    model = Stub()
    with pytest.raises(ValueError, match="target tokens"):
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
        ("layer_weights", "1,0"),
    ],
)
def test_invalid_options_are_rejected(option, value):
    with pytest.raises(ValueError):
        criterion(**{option: value})


def test_weights_for_another_depth_are_rejected():
    with pytest.raises(ValueError, match="2 numbers, but the loss is over 3 layers"):
        criterion(layer_weights="1,1")(Stub(), batch())


def test_the_criterion_is_built_from_the_command_line():
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, MuELossConfig())
    args = parser.parse_args(["--layer-weights", "last", "--report-accuracy"])
    args.criterion, args.sentence_avg = "mue_loss", True
    built = build_criterion(args, task())
    assert (built.layer_weights, built.report_accuracy, built.sentence_avg) == ("last", True, True)
    assert built.label_smoothing == 0.0

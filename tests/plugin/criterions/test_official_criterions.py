"""OFA's criterions by name: plain cross-entropy, and the encouraging loss, slowly recomputed."""

from __future__ import annotations

import math

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY
from helpers.criterion_samples import LAYERS, PAD, Stub, batch, criterion, masks, task

from ofa_exit.plugin.criterions.official import EncouragingLossConfig, OFALossConfig

EPSILON = 0.1


def build(name: str, config, **options):
    values = config(sentence_avg=False, label_smoothing=EPSILON, **options)
    return CRITERION_REGISTRY[name].build_criterion(values, task()).train()


def logits_of(model, sample):
    features = model(**sample["net_input"], all_layers=True)[1]["layer_features"][LAYERS - 1]
    return model.output_layer(features)


def slow_loss(model, sample, log_end, worst=0.0, best=0.0):
    """Token by token and word by word; returns the loss and the number of tokens in it."""
    allowed, conf = sample.get("constraint_masks"), sample.get("conf")
    logits, pairs = logits_of(model, sample).double(), []
    for row, targets in enumerate(sample["target"].tolist()):
        for place, target in enumerate(targets):
            if target == PAD:
                continue
            scores, words = logits[row, place], range(logits.size(2))
            able = [w for w in words if allowed is None or allowed[row, place, w]]
            norm = math.log(sum(math.exp(scores[w]) for w in able))
            weight = 1.0 if conf is None else float(conf[row])
            lprob = {w: weight * (float(scores[w]) - norm) for w in able}
            eps_i = EPSILON / (len(able) - 1 + (0 if allowed is None else 1e-6))
            loss = -(1 - EPSILON - eps_i) * lprob[target] - eps_i * sum(lprob.values())
            bonus = {w: slow_bonus(math.exp(lprob[w]), log_end) for w in able}
            added = (1 - EPSILON) * bonus[target] + EPSILON / len(words) * sum(bonus.values())
            pairs.append((loss, added))
    pairs.sort()
    pairs = pairs[: max(1, int(len(pairs) * (1 - worst)))]
    kept = max(1, int(len(pairs) * (1 - best)))
    return sum(map(sum, pairs[-kept:])), kept


def slow_bonus(p, log_end):
    if log_end < 1 and p > log_end:
        return math.log(1 - log_end) - (p - log_end) / (1 - log_end)
    return math.log(max(1 - p, 1e-5))


@pytest.mark.parametrize("spelling", ["adjust", "ajust"])
def test_plain_cross_entropy_is_that_of_the_last_layer(spelling):
    model, sample = Stub().train(), batch()
    loss, size, _ = build(f"{spelling}_label_smoothed_cross_entropy", OFALossConfig)(model, sample)
    expected, expected_size, _ = criterion(layer_weights="last")(model, sample)
    assert size == expected_size == sample["ntokens"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("spelling", ["adjust", "ajust"])
@pytest.mark.parametrize("log_end", [0.75, 0.3, 1.0])
@pytest.mark.parametrize("extra", [(), ("constraint_masks",), ("constraint_masks", "conf")])
def test_encouraging_loss(spelling, log_end, extra):
    model, sample = Stub().train(), batch()
    with torch.no_grad():
        model.embed.weight.mul_(2)  # some words are likely
    if extra:
        sample["constraint_masks"] = masks(sample)
    if "conf" in extra:
        sample["conf"] = torch.rand(len(sample["target"])) + 0.1
    name = f"{spelling}_label_smoothed_encouraging_loss"
    loss, size, _ = build(name, EncouragingLossConfig, log_end=log_end)(model, sample)
    assert size == sample["ntokens"]
    assert float(loss) == pytest.approx(slow_loss(model, sample, log_end)[0], rel=1e-4)


@pytest.mark.parametrize(("worst", "best"), [(0.3, 0.0), (0.0, 0.4), (0.3, 0.4)])
def test_worst_and_best_tokens_are_dropped_after_their_updates(worst, best):
    model, sample = Stub().train(), batch(rows=6)
    name = "ajust_label_smoothed_encouraging_loss"
    options = {"drop_worst_ratio": worst, "drop_worst_after": 5, "drop_best_ratio": best}
    loss_of = build(name, EncouragingLossConfig, **options, drop_best_after=8)
    for update, ratios in ((5, (0, 0)), (6, (worst, 0)), (9, (worst, best))):
        model.num_updates = update
        loss, size, _ = loss_of(model, sample)
        expected, kept = slow_loss(model, sample, 0.75, *ratios)
        assert (size, float(loss)) == (kept, pytest.approx(expected, rel=1e-4))
    loss, size, _ = loss_of.eval()(model, sample)
    assert size == sample["ntokens"]


def test_gradients_are_finite_for_sure_words():
    model, sample = Stub().train(), batch()
    with torch.no_grad():
        model.embed.weight.mul_(50)
    loss, _, _ = build("ajust_label_smoothed_encouraging_loss", EncouragingLossConfig)(
        model, sample
    )
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_end": 0.0}, "--log-end is 0"),
        ({"log_end": 1.5}, "--log-end is 1.5"),
        ({"drop_best_ratio": 1.0}, "--drop-best-ratio is 1"),
        ({"drop_best_after": -1}, "--drop-best-after is -1"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        build("ajust_label_smoothed_encouraging_loss", EncouragingLossConfig, **options)

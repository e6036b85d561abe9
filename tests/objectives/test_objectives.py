"""The losses against loops over tokens and words, and the memory of layer-wise scoring."""

import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ofa_exit.objectives import layerwise
from ofa_exit.objectives.cross_entropy import (
    drop_worst,
    token_cross_entropy,
    token_rows,
    tokens_kept,
)
from ofa_exit.objectives.layerwise import parse_layer_weights, score_layers


def slow_cross_entropy(logits, target, epsilon, allowed=None, confidence=None):
    """Compute the loss token by token, in Python numbers."""
    losses = []
    for m, row in enumerate(logits.double().tolist()):
        words = [v for v in range(len(row)) if allowed is None or allowed[m, v]]
        norm = math.log(sum(math.exp(row[v]) for v in words))
        logp = {v: row[v] - norm for v in words}
        if confidence is not None:
            logp = {v: p * float(confidence[m]) for v, p in logp.items()}
        others = len(words) - 1 if allowed is None else len(words) - 1 + 1e-6
        eps_i = epsilon / others
        gold = logp[int(target[m])]
        losses.append(-(1 - epsilon - eps_i) * gold - eps_i * sum(logp.values()))
    return losses


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_a_slow_loop(epsilon, masked, weighted):
    logits, target = torch.randn(7, 11) * 3, torch.randint(11, (7,))
    allowed = (torch.rand(7, 11) < 0.4).scatter(1, target[:, None], True) if masked else None
    confidence = torch.rand(7) if weighted else None
    loss, nll = token_cross_entropy(logits, target, epsilon, allowed, confidence)
    assert loss.tolist() == pytest.approx(
        slow_cross_entropy(logits, target, epsilon, allowed, confidence), rel=1e-5
    )
    assert nll.tolist() == pytest.approx(
        slow_cross_entropy(logits, target, 0.0, allowed, confidence), rel=1e-5
    )


def test_label_smoothing_equals_torch():
    """Here the target keeps 1 - ε and the others share ε; torch spreads its ε over all words."""
    logits, target = torch.randn(5, 9, requires_grad=True), torch.randint(9, (5,))
    loss, _ = token_cross_entropy(logits, target, 0.2)
    expected = torch.nn.functional.cross_entropy(
        logits, target, label_smoothing=0.2 * 9 / 8, reduction="none"
    )
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss.sum(), logits)
    (theirs,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_finite_and_reach_allowed_words_alone():
    logits = torch.randn(3, 8, requires_grad=True)
    target = torch.tensor([1, 2, 5])
    allowed = torch.zeros(3, 8, dtype=torch.bool)
    allowed[0, 1:3] = allowed[1, 2:7] = allowed[2, 5] = True  # the last has a single answer
    loss, nll = token_cross_entropy(logits, target, 0.1, allowed)
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[~allowed] == 0).all()
    assert nll[2].item() == 0


def test_half_precision_logits_are_computed_in_float32():
    logits, target = torch.randn(4, 50).half(), torch.randint(50, (4,))
    loss, nll = token_cross_entropy(logits, target, 0.1)
    assert loss.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(loss, token_cross_entropy(logits.float(), target, 0.1)[0])


def test_large_vocabularies_keep_their_precision():
    logits, target = torch.randn(3, 59457) * 4, torch.randint(59457, (3,))
    loss, _ = token_cross_entropy(logits, target, 0.1)
    exact, _ = token_cross_entropy(logits, target, 0.0)
    smooth = -logits.double().log_softmax(-1).sum(-1)
    eps_i = 0.1 / 59456
    expected = (1 - 0.1 - eps_i) * exact.double() + eps_i * smooth
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_token_rows_are_the_positions_without_padding():
    target = torch.tensor([[1, 7, 2, 1], [1, 1, 1, 1], [5, 6, 2, 1], [1, 1, 9, 2]])
    assert token_rows(target, 1, 7).tolist() == [1, 2, 8, 9, 10, 14, 15]


def test_drop_worst_keeps_the_smallest_losses():
    loss = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0], requires_grad=True)
    kept = drop_worst(loss, tokens_kept(5, 0.4))
    assert sorted(kept.tolist()) == [1, 2, 3]
    kept.sum().backward()
    assert loss.grad.tolist() == [0, 1, 0, 1, 1]


def test_drop_worst_may_compare_other_losses():
    loss, by = torch.tensor([5.0, 1.0, 4.0, 2.0]), torch.tensor([0.1, 0.9, 0.3, 0.8])
    assert sorted(drop_worst(loss, 2, by=by).tolist()) == [4, 5]
    assert torch.equal(drop_worst(loss, 4, by=by), loss)


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"), [(10, 0, 10), (10, 0.2, 8), (7, 0.2, 5), (1, 0.5, 1), (3, 0.9, 1)]
)
def test_number_of_tokens_that_drop_worst_keeps(tokens, ratio, kept):
    assert tokens_kept(tokens, ratio) == kept


def test_layer_weights_sum_to_one():
    three = range(1, 4)
    assert parse_layer_weights("uniform", range(1, 5)) == dict.fromkeys(range(1, 5), 0.25)
    assert parse_layer_weights("last", three) == {1: 0, 2: 0, 3: 1}
    assert parse_layer_weights("1,2, 5", three) == {1: 0.125, 2: 0.25, 3: 0.625}
    assert parse_layer_weights("2,2", [2, 5]) == parse_layer_weights("uniform", [2, 5])


def test_rising_weights_are_the_numbers_of_the_layers():
    assert parse_layer_weights("rising", range(1, 4)) == {1: 1 / 6, 2: 2 / 6, 3: 3 / 6}
    assert parse_layer_weights("rising", [1, 3, 6]) == {1: 0.1, 3: 0.3, 6: 0.6}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("linear", r"'linear'.*uniform.*last"),
        ("", r"''.*uniform.*last"),
        ("1,2", r"'1,2'.*\b2\b.*\b3 layers"),
        ("1,-1,1", r"'1,-1,1'.*not negative"),
        ("1,nan,1", r"'1,nan,1'.*finite"),
        ("inf,1,1", r"'inf,1,1'.*finite"),
        ("1,1,0", r"'1,1,0'.*last positive"),
    ],
)
def test_invalid_layer_weights_are_rejected(spec, problem):
    with pytest.raises(ValueError, match=problem):
        parse_layer_weights(spec, range(1, 4))


V = 997  # no other dimension in these tests has this size


class LiveLogits(TorchDispatchMode):
    """Count the logits [16, V] that are in memory at the same time, forward and backward."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and x.dim() == 2 and x.size(0) == 16 and x.size(1) == V:
                self.alive[x.untyped_storage()._cdata] = StorageWeakRef(x.untyped_storage())
        self.alive = {k: ref for k, ref in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, len(self.alive))
        return result


def scored(layers: int, weights: list[float]):
    weight = torch.randn(V, 8, requires_grad=True)
    features = [torch.randn(16, 8, requires_grad=True) for _ in range(layers)]
    target = torch.randint(V, (16,))

    def score(layer, x):
        return token_cross_entropy(x @ weight.t(), target, 0.1)[0].sum()

    return weight, features, score, weights


def backward(weight, features, score, weights):
    scores = score_layers(dict(enumerate(features)), score, V)
    loss = sum(weights[i] * s for i, s in scores.items())
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("kept", [1, 3, 6])
def test_logits_of_so_many_layers_are_in_memory(monkeypatch, kept):
    monkeypatch.setattr(layerwise, "MAX_KEPT_NUMBERS", kept * 16 * V + 1)
    peaks = []
    for layers in (1, 6):
        case = scored(layers, [1 / layers] * layers)
        with LiveLogits() as live:
            backward(*case)
        peaks.append(live.peak)
    assert peaks[0] + kept - 2 <= peaks[1] <= peaks[0] + kept - 1


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_scores_and_gradients_equal_those_of_all_layers_at_once(monkeypatch, kept):
    monkeypatch.setattr(layerwise, "MAX_KEPT_NUMBERS", kept * 16 * V)
    weight, features, score, weights = scored(4, [0.1, 0.2, 0.3, 0.4])
    loss = backward(weight, features, score, weights)
    ours = [weight.grad.clone(), *(x.grad.clone() for x in features)]
    for x in (weight, *features):
        x.grad = None
    expected = sum(w * score(0, x) for w, x in zip(weights, features, strict=True))
    expected.backward()
    assert loss == pytest.approx(expected.item())
    for mine, reference in zip(ours, [weight.grad, *(x.grad for x in features)], strict=True):
        torch.testing.assert_close(mine, reference)


def test_recomputed_logits_have_the_same_dropout(monkeypatch):
    monkeypatch.setattr(layerwise, "MAX_KEPT_NUMBERS", 0)
    weight, features, score, weights = scored(4, [0.1, 0.2, 0.3, 0.4])

    def dropped(layer, x):
        return score(layer, torch.nn.functional.dropout(x, 0.5))

    torch.manual_seed(1)
    loss = backward(weight, features, dropped, weights)
    ours = [weight.grad.clone(), *(x.grad.clone() for x in features)]
    for x in (weight, *features):
        x.grad = None
    torch.manual_seed(1)
    expected = sum(w * dropped(0, x) for w, x in zip(weights, features, strict=True))
    expected.backward()
    assert loss == pytest.approx(expected.item())
    for mine, reference in zip(ours, [weight.grad, *(x.grad for x in features)], strict=True):
        torch.testing.assert_close(mine, reference)


def test_a_loss_of_the_last_layer_projects_once():
    calls = []

    def score(layer, x):
        calls.append(layer)
        return (x * 2).sum()

    score_layers({3: torch.ones(1, requires_grad=True)}, score, 1)[3].backward()
    assert len(calls) == 1

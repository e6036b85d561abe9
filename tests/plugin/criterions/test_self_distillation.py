"""mue_loss with --self-distil, against slow loops."""

import copy

import pytest
import torch
from helpers import task_files as files
from helpers.criterion_samples import LAYERS, Stub, batch, criterion, masks
from helpers.criterion_samples import task as stub_task
from helpers.slow_losses import (
    assert_same_gradients,
    at_targets,
    cross_entropies,
    divergences,
    gradients,
)
from helpers.small_models import nano, training_batch

from ofa_exit.plugin.criterions.mue import MuELoss, MuELossConfig
from ofa_exit.plugin.criterions.self_distillation import AveragedModel


def layer_logits(model, sample, rows) -> list[torch.Tensor]:
    _, extra = model(**sample["net_input"], features_only=True, all_layers=True)
    return [model.output_layer(x.flatten(0, 1)[rows]) for x in extra["layer_features"]]


def slow_loss(model, sample, share, temperature, weights, teacher=None, epsilon=0.1):
    """The loss, its cross-entropies and divergences by layer; summed over tokens."""
    tokens = at_targets(sample)
    logits = layer_logits(model, sample, tokens["rows"])
    last = logits[-1] if teacher is None else layer_logits(teacher, sample, tokens["rows"])[-1]
    label = [sum(cross_entropies(z, tokens, epsilon)) for z in logits]
    kl = [sum(divergences(last, z, tokens, temperature)) for z in logits[:-1]]
    layers = [(1 - share) * ce + share * d for ce, d in zip(label, kl)]
    total = sum(w * loss for w, loss in zip(weights, [*layers, label[-1]]))
    return total, label, kl


def full_sample(constrained=True, confident=True) -> dict:
    sample = batch()
    if constrained:
        sample["constraint_masks"] = masks(sample)
    if confident:
        sample["conf"] = torch.rand(4)
    return sample


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("constrained", "confident"), [(False, False), (True, True)])
@pytest.mark.parametrize("weights", ["uniform", "1,0,3"])
def test_loss_and_gradients_equal_the_slow_loop(
    share, temperature, constrained, confident, weights
):
    model, sample = Stub(), full_sample(constrained, confident)
    loss = criterion(layer_weights=weights, self_distil=share, self_distil_temperature=temperature)
    value, size, log = loss(model, sample)
    value.backward()
    ours = gradients(model)

    numbers = {"uniform": [1 / 3] * 3, "1,0,3": [0.25, 0, 0.75]}[weights]
    expected, label, kl = slow_loss(model, sample, share, temperature, numbers)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert size == sample["ntokens"]
    assert_same_gradients(ours, gradients(model))
    for layer, number in enumerate(numbers, start=1):
        if number:
            assert log[f"loss_layer_{layer}"].item() == pytest.approx(label[layer - 1].item())
        if number and layer < LAYERS:
            assert log[f"distil_layer_{layer}"].item() == pytest.approx(kl[layer - 1].item())
        else:
            assert f"distil_layer_{layer}" not in log


def test_share_0_changes_nothing_bit_for_bit():
    model, sample = Stub(), full_sample()
    plain = MuELoss(stub_task(), 0.1, "uniform", 0.3, 0, True, False).train()
    model.num_updates = 1
    found = []
    for loss in (
        plain,
        criterion(drop_worst_ratio=0.3, report_accuracy=True, self_distil_teacher="average"),
    ):
        value, _, log = loss(model, sample)
        value.backward()
        found.append((value, log, gradients(model)))
        assert loss.average is None
    (one, one_log, one_gradients), (other, other_log, other_gradients) = found
    assert torch.equal(one, other) and one_log == other_log
    assert all(torch.equal(one_gradients[name], other_gradients[name]) for name in one_gradients)


def test_the_real_model_equals_the_slow_loop():
    model, sample = nano(), training_batch(3)  # eval mode: no dropout
    loss = criterion(self_distil=0.4, label_smoothing=0.1)
    value = loss(model, sample)[0]
    value.backward()
    ours = gradients(model)
    expected, _, _ = slow_loss(model, sample, 0.4, 1.0, [1 / 6] * 6)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(ours, gradients(model))


def test_drop_worst_excludes_a_token_from_both_parts():
    model, sample = Stub(), full_sample()
    model.num_updates = 1
    value, kept, _ = criterion(drop_worst_ratio=0.3, self_distil=0.4)(model, sample)
    tokens = at_targets(sample)
    logits = layer_logits(model, sample, tokens["rows"])
    total = 0.0
    for layer, z in enumerate(logits):
        label = [float(x) for x in cross_entropies(z, tokens, 0.1)]
        chosen = sorted(range(len(label)), key=label.__getitem__)[:kept]
        ce = sum(label[m] for m in chosen)
        if layer < LAYERS - 1:
            kl = divergences(logits[-1], z, tokens)
            ce = 0.6 * ce + 0.4 * sum(float(kl[m]) for m in chosen)
        total += ce / LAYERS
    assert kept < sample["ntokens"]
    assert value.item() == pytest.approx(total, rel=1e-5)


# ------------------------------------------------------------------ the averaged teacher


def step(model) -> None:
    """An update of a trainer, in short."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.num_updates += 1


def test_the_averaged_teacher_follows_the_model():
    model, sample = Stub(), full_sample()
    average = copy.deepcopy(model)
    loss = criterion(self_distil=0.3, self_distil_teacher="average", self_distil_decay=0.8)
    for update in range(3):
        for _ in range(2):  # two batches of one update
            value = loss(model, sample)[0]
            value.backward()
            ours = gradients(model)
            expected, _, _ = slow_loss(model, sample, 0.3, 1.0, [1 / 3] * 3, teacher=average)
            expected.backward()
            assert value.item() == pytest.approx(expected.item(), rel=1e-5), update
            assert_same_gradients(ours, gradients(model))
        step(model)
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), model.parameters()):
                mean.copy_(0.8 * mean + 0.2 * parameter)


def test_validation_uses_the_average_and_does_not_move_it():
    model, sample = Stub(), full_sample()
    loss = criterion(self_distil=0.5, self_distil_teacher="average")
    loss.eval()
    plain = criterion(self_distil=0.5).eval()
    assert torch.equal(loss(model, sample)[0], plain(model, sample)[0])
    assert loss.average is None  # nothing has been trained
    loss.train()(model, sample)
    start = copy.deepcopy(model)
    step(model)
    value = loss.eval()(model, sample)[0]
    expected, _, _ = slow_loss(model, sample, 0.5, 1.0, [1 / 3] * 3, teacher=start)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_average_of_the_real_model_is_no_part_of_the_criterion():
    model, sample = nano(dropout=0.1).train(), training_batch(2)
    loss = criterion(self_distil=0.5, self_distil_teacher="average", self_distil_decay=0.0)
    loss(model, sample)[0].backward()
    assert not list(loss.parameters()) and not loss.state_dict()
    assert not any(module.training for module in loss.average.model.modules())
    assert not any(p.requires_grad for p in loss.average.model.parameters())
    step(model)
    loss.average.follow(model)  # with decay 0 the copy is the model, batch statistics included
    model.eval()
    with torch.no_grad():
        expected = model(**sample["net_input"], features_only=True)[0]
    assert torch.equal(loss.average.features(sample["net_input"]), expected)


def test_the_average_of_a_half_precision_model_is_in_float32():
    model, sample = nano().half(), training_batch(2)
    average = AveragedModel(model, 0.9)
    sample["net_input"]["patch_images"] = sample["net_input"]["patch_images"].half()
    assert average.features(sample["net_input"]).dtype == torch.float32
    before = [p.clone() for p in average.model.parameters()]
    step(model)
    average.follow(model)
    for old, mean, parameter in zip(before, average.model.parameters(), model.parameters()):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * parameter.float())


@pytest.mark.parametrize("teacher", ["last", "average"])
def test_training_resumes(teacher, tmp_path, caplog):
    caplog.set_level("INFO")
    data = files.caption_folder(tmp_path / "data")
    options = ["--self-distil", "0.3", "--self-distil-teacher", teacher, "--disable-validation"]
    for updates in (2, 4):
        checkpoint = files.train(
            *("mue_caption", data, tmp_path / "run", *options), updates=updates, resumable=True
        )
    state = torch.load(checkpoint)
    assert state["optimizer_history"][-1]["num_updates"] == 4
    assert state["criterion"] is None
    starts = [text for text in caplog.messages if "averaged teacher starts" in text]
    expected = [f"the averaged teacher starts from the weights at update {n}" for n in (0, 2)]
    assert starts == (expected if teacher == "average" else [])


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_distil": 1.5}, "--self-distil is 1.5; give a number from 0 to 1"),
        ({"self_distil": -0.1}, "--self-distil is -0.1"),
        ({"self_distil": float("nan")}, "--self-distil is nan"),
        ({"self_distil_temperature": 0.0}, "--self-distil-temperature is 0.0; give .* above 0"),
        ({"self_distil_teacher": "first"}, "--self-distil-teacher 'first': choose from last, av"),
        ({"self_distil_decay": 1.0}, "--self-distil-decay is 1.0"),
        ({"self_distil": 0.5, "layer_weights": "last"}, "--self-distil .*--layer-weights last"),
    ],
)
def test_invalid_options_are_rejected_on_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        MuELoss.build_criterion(MuELossConfig(sentence_avg=False, **options), stub_task())
    assert "\n" not in str(error.value)

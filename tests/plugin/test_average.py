"""The moving average of the weights: kept in training, validated with, evaluated, asked for."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics
from helpers import task_files as files
from helpers.checkpoint_forms import hugging_face_names
from helpers.small_models import nano

from ofa_exit.plugin.average import ModelAverage, read_average
from ofa_exit.plugin.errors import UsageError

TASK = "mue_caption"
EMBEDDING = "encoder.embed_tokens.weight"
EMA = ["--store-ema", "--ema-decay", "0.5"]


def average_of(model, fp32: bool, decay: float = 0.75) -> ModelAverage:
    config = SimpleNamespace(
        ema_decay=decay, ema_fp32=fp32, ema_seed_model=None, ema_start_update=0, ema_update_freq=1
    )
    return ModelAverage(model, config)


@pytest.mark.parametrize("fp32", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_every_weight_is_averaged_once(fp32, half):
    """Also those with several names; integers and the version are copied."""
    model = nano().train()
    model = model.half() if half else model
    average = average_of(model, fp32)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in (1, 2):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.copy_(value + 1 if value.is_floating_point() else value * 3 + 1)
            model.encoder.version.fill_(3)
        average.step(model, update)
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.endswith("version"):
                expected[name] = 0.75 * expected[name].float() + 0.25 * value.float()
            else:
                expected[name] = value.clone()
    tolerance = {"atol": 0.02, "rtol": 0.01} if half else {"atol": 1e-5, "rtol": 1e-5}
    found = average.get_model().state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), **tolerance, msg=name)
    assert found["encoder.embed_images.bn1.num_batches_tracked"] == 4


def test_a_changed_average_forgets_what_it_cached():
    model = nano()
    average = average_of(model, fp32=True)
    averaged = average.get_model().eval()
    device = torch.device("cpu")
    with torch.no_grad():
        before = averaged.encoder._biases((2, 2), 5).positions.clone()
        model.encoder.pos_ln.weight.add_(1)
        average.step(model, 1)
        after = averaged.encoder._biases((2, 2), 5).positions
    assert device == after.device and not torch.equal(before, after)


def test_a_larger_vocabulary_fits_a_stored_average():
    small, large = nano(), nano()
    rows = small.state_dict()[EMBEDDING].size(0)
    stored = {name: value[:40] if value.size(0) == rows else value
              for name, value in small.state_dict().items() if value.dim()}  # fmt: skip
    average = average_of(large, fp32=True)
    average.restore(dict(stored))
    average.build_fp32_params(stored)
    assert average.fp32_params[EMBEDDING].size(0) == rows
    assert torch.equal(average.fp32_params[EMBEDDING][:40], small.state_dict()[EMBEDDING][:40])


# ------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.caption_folder(tmp_path_factory.mktemp("average"))


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        folder = tmp_path_factory.mktemp("plain")
        return files.train(TASK, data, folder, "--disable-validation", updates=2)


@pytest.fixture(scope="module")
def averaged(data, plain, tmp_path_factory):
    """A checkpoint with an average, fine-tuned from one without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        more = ["--finetune-from-model", str(plain), *EMA, "--ema-fp32", "--disable-validation"]
        folder = tmp_path_factory.mktemp("averaged")
        return files.train(TASK, data, folder, *more, "--lr", "0.05", updates=3, resumable=True)


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_the_average_starts_from_the_loaded_weights(data, plain, tmp_path):
    """With one update and a decay of 0.5 it lies halfway between start and end."""
    more = [*EMA, "--finetune-from-model", str(plain), "--disable-validation"]
    path = files.train(TASK, data, tmp_path, *more, updates=1)
    start, end, found = weights(plain), weights(path), read_average(str(path))
    name = "decoder.layers.0.fc1.weight"
    assert not torch.equal(start[name], end[name])
    for entry in (name, EMBEDDING):
        torch.testing.assert_close(found[entry], (start[entry] + end[entry]) / 2)


def test_a_resumed_average_continues(data, averaged, tmp_path):
    more = [*EMA, "--ema-fp32", "--disable-validation", "--restore-file", str(averaged)]
    path = files.train(TASK, data, tmp_path, *more, updates=4)
    before, after = read_average(str(averaged)), read_average(str(path))
    expected = (before[EMBEDDING] + weights(path)[EMBEDDING]) / 2
    torch.testing.assert_close(after[EMBEDDING], expected)


def test_generation_with_and_without_the_average(data, averaged, tmp_path, caplog):
    """--ema-eval gives what a checkpoint of the average alone gives; without it a notice."""
    state = torch.load(averaged, weights_only=True)
    state["model"] = copy.deepcopy(state["extra_state"].pop("ema"))
    alone = tmp_path / "alone.pt"
    torch.save(state, alone)
    with caplog.at_level(logging.WARNING):
        expected = files.generate(TASK, data / "test.tsv", alone)["H"]
        assert "moving average" not in caplog.text
        assert files.generate(TASK, data / "test.tsv", averaged, "--ema-eval")["H"] == expected
        assert "moving average" not in caplog.text
        assert files.generate(TASK, data / "test.tsv", averaged)["H"] != expected
    assert f"{averaged} also holds a moving average" in caplog.text


@pytest.mark.parametrize("form", ["before 1.6", "data parallel", "Hugging Face"])
def test_averages_in_other_forms(data, averaged, tmp_path, form):
    """An average is evaluated, and continued, from every form that weights may have."""
    state = torch.load(averaged, weights_only=True)
    extra, expected = state["extra_state"], read_average(str(averaged))
    for key in ("ema", "ema_fp32_params"):
        if form == "data parallel":
            extra[key] = {f"module.{name}": value for name, value in extra[key].items()}
        elif form == "Hugging Face":
            extra[key] = hugging_face_names(extra[key])
    path = tmp_path / "other.pt"
    torch.save(state, path, _use_new_zipfile_serialization=form != "before 1.6")
    found = read_average(str(path))
    assert all(torch.equal(found[name], expected[name]) for name in found)
    captions = files.generate(TASK, data / "test.tsv", averaged, "--ema-eval")["H"]
    assert files.generate(TASK, data / "test.tsv", path, "--ema-eval")["H"] == captions
    more = [*EMA, "--ema-fp32", "--disable-validation", "--restore-file"]
    resumed = []
    for start in (averaged, path):
        end = files.train(TASK, data, tmp_path / start.stem, *more, str(start), updates=4)
        resumed.append(read_average(str(end)))
    for name, value in resumed[0].items():
        torch.testing.assert_close(resumed[1][name], value, msg=name)


def test_an_average_with_nan_is_named(data, averaged, tmp_path):
    state = torch.load(averaged, weights_only=True)
    state["extra_state"]["ema"]["decoder.layers.0.fc1.weight"].fill_(float("nan"))
    path = tmp_path / "nan.pt"
    torch.save(state, path)
    message = r"nan\.pt, moving average: decoder\.layers\.0\.fc1\.weight holds NaN or infinity"
    with pytest.raises(UsageError, match=message):
        files.generate(TASK, data / "test.tsv", path, "--ema-eval")
    with pytest.raises(UsageError, match=message):
        files.train(TASK, data, tmp_path / "run", *EMA, "--restore-file", str(path))
    state["extra_state"]["ema"] = {1: torch.ones(2)}
    torch.save(state, path)
    with pytest.raises(UsageError, match="moving average: the weights have the key 1"):
        files.generate(TASK, data / "test.tsv", path, "--ema-eval")


def test_validation_of_a_checkpoint_with_the_average(data, averaged):
    losses = []
    for more in ([], ["--ema-eval"]):
        with metrics.aggregate(new_root=True) as seen:
            files.validate(data, averaged, *more, "--task", TASK, "--batch-size", "4")
        losses.append(seen.get_smoothed_values()["loss"])
    assert losses[0] != losses[1]


def test_validation_in_training_generates_with_the_average(data, plain, tmp_path, monkeypatch):
    from ofa_exit.plugin.tasks.caption import MuECaptionTask

    seen = []
    generate = MuECaptionTask.generate

    def spy(self, generator, models, *rest, **more):
        seen.append((models[0], self.model_to_train))
        return generate(self, generator, models, *rest, **more)

    monkeypatch.setattr(MuECaptionTask, "generate", spy)
    more = [*EMA, "--uses-ema", "--eval-cider", "--finetune-from-model", str(plain)]
    files.train(TASK, data, tmp_path, *more, updates=1)
    assert seen and all(used is not trained for used, trained in seen)
    assert len({id(used) for used, _ in seen}) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--uses-ema", "--eval-cider"], "--uses-ema needs --store-ema"),
        (["--uses-ema", *EMA], "--uses-ema needs --eval-cider or --eval-bleu"),
        (["--ema-eval"], "--ema-eval is for checkpoints: in training, give --uses-ema"),
    ],
)
def test_options_that_would_have_no_effect(data, more, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        files.train(TASK, data, tmp_path, *more)


def test_a_checkpoint_without_an_average_is_rejected_before_it_is_loaded(data, plain, monkeypatch):
    monkeypatch.setattr("fairseq.checkpoint_utils.load_model_ensemble", None)
    with pytest.raises(UsageError, match=r"checkpoint_last\.pt holds no moving average"):
        files.generate(TASK, data / "test.tsv", plain, "--ema-eval")

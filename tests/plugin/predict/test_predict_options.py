"""What a checkpoint fixes, where its dictionary is, and how wrong options are rejected."""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace

import pytest
import torch
from helpers import task_files as files
from helpers import vqa_samples as vqa
from helpers.photos import write_photos

import ofa_exit
from ofa_exit.evaluation.efficiency.report import GenerationReport
from ofa_exit.plugin.errors import UsageError
from ofa_exit.plugin.predict.checkpoint import task_config
from ofa_exit.plugin.saved_arguments import SavedCheckpoint


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a caption checkpoint, whose training data is kept elsewhere."""
    folder = tmp_path_factory.mktemp("trained")
    data = files.caption_folder(folder / "data")
    checkpoint = files.train("mue_caption", data, folder / "run", "--disable-validation", updates=1)
    return data, checkpoint


@pytest.fixture(scope="module")
def model(trained):
    return ofa_exit.load(trained[1], device="cpu")


def official(path, out, task, **options):
    """Store a checkpoint as OFA does: arguments in ``args``, the official task's name."""
    state = torch.load(path, weights_only=True)
    values = {**vars(state["cfg"]["model"]), **options, "task": task, "criterion": "adjust_label"}
    drop = [name for name in values if name.startswith("exit_") and name != "exit_layers"]
    args = Namespace(**{k: v for k, v in values.items() if k not in (*drop, "_name")})
    torch.save({**state, "args": args, "cfg": None}, out)
    return out


def test_the_dictionary_is_looked_for(trained, photos, tmp_path):
    data, checkpoint = trained
    alone = shutil.copy(checkpoint, tmp_path / "alone.pt")
    expected = [one.text for one in ofa_exit.load(alone, device="cpu").caption(photos)]
    hidden = data.rename(data.with_name("moved"))  # the data of the training are gone
    try:
        message = r"alone\.pt: there is no dict.txt.*utils/BPE of https://github.com/OFA-Sys/OFA"
        with pytest.raises(ofa_exit.PredictionError, match=message):
            ofa_exit.load(alone, device="cpu")
        model = ofa_exit.load(alone, device="cpu", bpe_dir=hidden)
        assert [one.text for one in model.caption(photos)] == expected
        shutil.copy(hidden / "dict.txt", tmp_path)  # beside the checkpoint
        assert [one.text for one in ofa_exit.load(alone).caption(photos)] == expected
        files.write_dictionary(tmp_path, (*files.WORDS, "more"))
        with pytest.raises(ofa_exit.PredictionError, match=r"alone\.pt has 31 words, .*--bpe-dir"):
            ofa_exit.load(alone, device="cpu")
    finally:
        hidden.rename(data)


def test_official_arguments(trained, photos, tmp_path, caplog):
    data, checkpoint = trained
    given = dict(prompt_type="prev_output", patch_image_size=48, bpe_dir="../../utils/BPE")
    path = official(checkpoint, tmp_path / "vqa.pt", "vqa_gen", **given)
    model = ofa_exit.load(path, device="cpu", bpe_dir=data)
    task = model._task("vqa")
    assert (task.cfg.prompt_type, task.cfg.patch_image_size) == ("prev_output", 48)
    assert (task.cfg.code_dict_size, task.cfg.num_bins) == (0, 0)
    assert len(model.answer(photos, "what does the image describe")) == 2
    assert "was trained for" not in caplog.text
    # The image size holds for other tasks, too, and the prompt does not.
    model.entail(photos, "a red square")
    assert "the checkpoint was trained for vqa, not for entailment" in caplog.text
    other = model._task("entailment").cfg
    assert (other.prompt_type, other.patch_image_size) == ("none", 48)
    own = ofa_exit.load(path, device="cpu", bpe_dir=data, prompt_type="none", patch_image_size=32)
    assert own._task("vqa").cfg.prompt_type == "none"


def test_official_entailment_has_premises(trained, photos, tmp_path):
    path = official(trained[1], tmp_path / "ve.pt", "snli_ve", add_caption=True)
    model = ofa_exit.load(path, device="cpu", bpe_dir=trained[0])
    with pytest.raises(ofa_exit.PredictionError, match="trained with --add-caption: give premises"):
        model.entail(photos, "a red square")
    assert len(model.entail(photos, "a red square", "red paint")) == 2
    with pytest.raises(ofa_exit.PredictionError, match="3 premises for 2 images"):
        model.entail(photos, "a red square", ["a", "b", "c"])


def test_answers_of_the_training(tmp_path, caplog):
    folder = files.write_dictionary(tmp_path, vqa.WORDS)
    (tmp_path / "answers.txt").write_text("red\ndark\n")
    answers = str(tmp_path / "answers.txt")
    state = {"args": Namespace(task="mue_vqa", answers=answers)}
    saved = SavedCheckpoint("vqa.pt", state, {})
    assert task_config("vqa", str(folder), saved, {}).answers == answers
    (tmp_path / "answers.txt").unlink()
    assert task_config("vqa", str(folder), saved, {}).answers is None
    assert "answers.txt, which is missing: any words are searched" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": "similar"}, "unknown --exit-policy 'similar': choose from none, similarity"),
        ({"exits": "similarity", "decoder_treshold": 0.9}, "did you mean 'decoder_threshold'"),
        ({"exits": "static", "nothing": 0.9}, r"unknown option 'nothing': exits='static' takes"),
        ({"beem": 3}, r"unknown option 'beem': did you mean 'beam'\?"),
        ({"batchsize": 3}, r"unknown option 'batchsize': did you mean 'batch_size'\?"),
        ({"exits": "similarity", "alpha": 0.9}, "similarity does not take --exit-alpha"),
        ({"exits": "similarity", "decoder_threshold": -1}, "--exit-decoder-threshold must be"),
        ({"exits": "similarity", "encoder_threshold": 0.9}, "is for a joint encoder"),
        ({"exits": "static", "depths": "9,9,9"}, r"9"),
        ({"decoder_threshold": 0.9}, "without an exit policy"),
        ({"exits": "similarity", "kv": "swap"}, "swap"),
        ({"beam": 0}, "beam 0: give a whole number of at least 1"),
        ({"max_length": 2.5}, r"max_length 2\.5"),
        ({"batch_size": True}, "batch_size True"),
    ],
)
def test_wrong_options(model, photos, options, message):
    with pytest.raises(ofa_exit.PredictionError, match=message) as found:
        model.caption(photos, **options)
    assert "\n" not in str(found.value)
    # It must not end an interactive session.
    assert not isinstance(found.value, (UsageError, SystemExit))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, photos: model.answer(photos, []), "vqa needs questions"),
        (lambda model, photos: model.answer(photos, ["a", "b", "c"]), "3 texts for 2 images"),
        (lambda model, photos: model.answer(photos, "?!"), "has no words"),
        (lambda model, photos: model.entail(photos, ["a", " "]), "has no words"),
        (lambda model, photos: model.caption([1]), "give paths or Pillow's images, not int"),
        (lambda model, photos: model.caption(None), "give a path or one of Pillow's images"),
        (lambda model, photos: model.predict("captions", photos), "unknown task 'captions'"),
        (lambda model, photos: model.entail(photos, "a " * 500 + "b"), None),
    ],
)
def test_wrong_images_and_texts(model, photos, call, message):
    if message is None:  # cut to --max-src-length
        assert len(call(model, photos)) == 2
        return
    with pytest.raises(ofa_exit.PredictionError, match=message):
        call(model, photos)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "none.pt"}, r"none\.pt: no such checkpoint"),
        ({"path": "text.pt"}, r"text\.pt is a git-lfs pointer"),
        ({"device": "quantum"}, r"device 'quantum' cannot be used \(.*\)\. Try 'cpu'"),
        ({"patch_size": 32}, "unknown option 'patch_size': choose from patch_image_size"),
        ({"patch_image_size": 0}, "--patch-image-size is 0: give at least 16"),
        ({"num_bins": 7}, "--num-bins 7 has .* Give --code-dict-size 0 --num-bins 0"),
        ({"bpe_dir": "/no/folder"}, "/no/folder/dict.txt: no dictionary"),
    ],
)
def test_wrong_checkpoints(trained, tmp_path, options, message):
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    options = dict(options)
    path = tmp_path / options.pop("path") if "path" in options else trained[1]
    with pytest.raises(ofa_exit.PredictionError, match=message) as found:
        ofa_exit.load(path, **{"device": "cpu", **options})
    assert "\n" not in str(found.value)


def test_given_options_that_contradict_the_training_are_logged(trained, photos, caplog):
    model = ofa_exit.load(trained[1], device="cpu", patch_image_size=48, num_bins=0)
    assert caplog.text.count("--patch-image-size is 48, but") == 1
    assert "was trained with 32" in caplog.text and "--num-bins" not in caplog.text
    assert len(model.caption(photos)) == 2
    assert caplog.text.count("--patch-image-size is 48, but") == 1


@pytest.mark.parametrize("task", ["refcoco", "image_gen", "unify_task"])
def test_checkpoints_of_other_tasks_are_logged(trained, photos, tmp_path, task, caplog):
    path = official(trained[1], tmp_path / "other.pt", task)
    model = ofa_exit.load(path, device="cpu", bpe_dir=trained[0])
    for _ in range(2):
        model.caption(photos)
    message = f"the checkpoint was trained for {task}, not for caption"
    assert caplog.text.count(message) == 1


def test_options_of_the_training_are_logged_once(trained, photos, caplog):
    caplog.set_level(logging.INFO)
    model = ofa_exit.load(trained[1], device="cpu")
    model.caption(photos)
    model.answer(photos, "what colour is it?")
    assert caplog.text.count("as in the training of") == 1
    assert caplog.text.count("--patch-image-size 32") == 1


def test_chinese_checkpoints(trained, tmp_path):
    path = official(trained[1], tmp_path / "zh.pt", "caption", bpe="bert")
    with pytest.raises(ofa_exit.PredictionError, match=r"zh\.pt was trained with BERT's words"):
        ofa_exit.load(path, device="cpu", bpe_dir=trained[0])


def test_largest_image(trained, photos):
    model = ofa_exit.load(trained[1], device="cpu", max_image_pixels=255)
    with pytest.raises(ofa_exit.PredictionError, match=r"16x16 pixels, more than 255\. "):
        model.caption(photos)
    with pytest.raises(ofa_exit.PredictionError, match="--max-image-pixels is 0: give at least"):
        ofa_exit.load(trained[1], device="cpu", max_image_pixels=0)


def test_labels(trained, model, photos):
    other = ofa_exit.load(trained[1], device="cpu", labels="red,blue")
    found = other.entail(photos, "a square")
    assert {one.text for one in found} <= {"red", "blue"}
    (one, _), (same, _) = (
        model.entail(photos, "a square"),
        list(model.predict("snli_ve", photos, "a square")),
    )
    assert (one.text, one.score) == (same.text, same.score)
    with pytest.raises(ofa_exit.PredictionError, match="--labels 'red': give two answers"):
        ofa_exit.load(trained[1], device="cpu", labels="red").entail(photos, "a square")


def test_beam_search_among_answers(trained, photos, tmp_path):
    (tmp_path / "answers.txt").write_text("red square\nblue\na green square of paint\n")
    answers = str(tmp_path / "answers.txt")
    scored = ofa_exit.load(trained[1], device="cpu", answers=answers)
    searched = ofa_exit.load(trained[1], device="cpu", answers=answers, beam_search_vqa_eval=True)
    # A beam as wide as the list finds the best candidate.
    pairs = zip(scored.answer(photos, "what square"), searched.answer(photos, "what square"))
    for one, other in pairs:
        assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-4)
    assert len(searched.answer(photos, "what square", beam=1)) == 2


def test_the_average(trained, photos, tmp_path):
    data, plain = trained
    path = files.train(
        "mue_caption", data, tmp_path, "--disable-validation", "--store-ema", "--ema-decay", "0.5"
    )
    average = torch.load(path, weights_only=True)["extra_state"]["ema"]
    name = "decoder.layers.0.fc1.weight"
    weights, used = (
        ofa_exit.load(path, device="cpu", ema=ema).model.state_dict()[name] for ema in (False, True)
    )
    assert torch.equal(used, average[name].float()) and not torch.equal(used, weights)
    with pytest.raises(ofa_exit.PredictionError, match=r"--ema-eval: .* holds no moving average"):
        ofa_exit.load(plain, device="cpu", ema=True)


def test_nothing_is_kept_per_image(model, photos, monkeypatch):
    added = []
    monkeypatch.setattr(GenerationReport, "add", lambda *args, **rest: added.append(rest))
    assert len(model.caption(photos)) == 2 and added == []


def test_unknown_words_are_logged(model, photos, caplog):
    with caplog.at_level(logging.WARNING):
        model.answer(photos, "a purple square")
    assert caplog.text.count("not in the dictionary, read as unknown: 'purple'") == 1


def test_half_precision(trained, photos):
    model = ofa_exit.load(trained[1], device="cpu", fp16=True)
    assert next(model.model.parameters()).dtype == torch.float16
    assert len(model.caption(photos)) == 2

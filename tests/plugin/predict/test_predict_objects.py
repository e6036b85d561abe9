"""Questions with predicted objects, for checkpoints of --add-object."""

import pytest
from helpers import task_files as files
from helpers import vqa_samples as vqa
from helpers.photos import write_photos

import ofa_exit
from ofa_exit.plugin.predict.rows import image_rows

OBJECTS = ["red square&&paint&&a", "dark paint", "yellow"]
QUESTIONS = ["What colour is it?", "is it dark", "What colour is it?"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    data = files.write_dictionary(folder / "data", (*vqa.WORDS, "object:"))
    for name, kind in (("train", "one"), ("valid", "one"), ("test", "test")):
        rows = [vqa.row(n, kind, objects) for n, objects in enumerate(OBJECTS)]
        files.write_tsv(data / f"{name}.tsv", rows)
    more = ["--disable-validation", "--add-object", "--max-object-length", "2"]
    return data, files.train("mue_vqa", data, folder / "run", *more)


@pytest.fixture(scope="module")
def model(trained):
    return ofa_exit.load(trained[1], device="cpu")


def test_sources_and_answers_are_those_of_the_data_set(trained, model, photos):
    task = files.setup("mue_vqa", trained[0], add_object=True, max_object_length=2)
    task.load_dataset("test")
    examples = [task.dataset("test").rows.examples[n] for n in range(3)]
    cfg = model._task("vqa").cfg
    rows = image_rows("vqa", cfg, model.encoder, photos, QUESTIONS, objects=OBJECTS)
    assert [row.source.tolist() for row in rows] == [one.source.tolist() for one in examples]
    assert len({len(row.source) for row in rows}) > 1
    lines = files.generate("mue_vqa", *trained, "--gen-subset", "test", "--unnormalized")
    found = model.answer(photos, QUESTIONS, OBJECTS)
    assert [one.text for one in found] == [lines["D"][n][0][1].strip() for n in range(3)]


def test_one_text_of_objects_for_all(model, photos):
    together = model.answer(photos, QUESTIONS[0], "yellow")
    alone = [model.answer(photo, QUESTIONS[0], ["yellow"])[0] for photo in photos]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-4)


def test_missing_objects_are_logged_once(model, photos, caplog):
    bare = model.answer(photos, QUESTIONS)
    assert caplog.text.count("no objects are given") == 1 and "--objects" in caplog.text
    # As a row of the data set without objects.
    assert len(bare) == 3
    cfg = model._task("vqa").cfg
    rows = image_rows("vqa", cfg, model.encoder, photos[0], QUESTIONS[1])
    (source,) = [row.source for row in rows]
    assert model.dictionary.string(source) == "is it dark ? object:"


def test_objects_that_nothing_reads(trained, model, photos):
    plain = ofa_exit.load(trained[1], device="cpu", add_object=False)
    with pytest.raises(ofa_exit.PredictionError, match=r"objects: the checkpoint .* --add-object"):
        plain.answer(photos, QUESTIONS, OBJECTS)
    with pytest.raises(ofa_exit.PredictionError, match="2 objects for 3 images"):
        model.answer(photos, QUESTIONS, OBJECTS[:2])

"""--add-object: predicted objects in the question, as in OFA."""

import logging

import pytest
from helpers import task_files as files
from helpers.vqa_samples import WORDS, row

TASK = "mue_vqa"
OBJECT_WORDS = (*WORDS, "object:")


@pytest.fixture
def data(tmp_path):
    folder = files.write_dictionary(tmp_path / "data", OBJECT_WORDS)
    objects = ["red square&&paint&&a", " dark paint ", ""]
    files.write_tsv(folder / "train.tsv", [row(n, "one", objects[n % 3]) for n in range(6)])
    files.write_tsv(folder / "valid.tsv", [row(n, "one", objects[n % 3]) for n in range(6)])
    files.write_tsv(folder / "test.tsv", [row(n, "one") for n in range(6)])
    return folder


def example(data, number, split="valid", **options):
    task = files.setup(TASK, data, add_object=True, **options)
    task.load_dataset(split)
    one = task.dataset(split)[number]
    return one, lambda tokens: " ".join(task.dictionary[token] for token in tokens.tolist())


@pytest.mark.parametrize(
    ("number", "options", "source"),
    [
        (0, {}, "what colour is it ? object: red square paint a"),
        (0, {"max_object_length": 2}, "what colour is it ? object: red square paint"),
        (1, {}, "is it dark ? object: dark paint"),
        (2, {}, "what colour is it ? object:"),  # without objects, as in OFA
        (0, {"selected_cols": "0,5,2,3,4"}, "what colour is it ? object: red square paint a"),
    ],
)
def test_objects_follow_the_question(data, number, options, source):
    one, text = example(data, number, **options)
    assert text(one.source) == f"<s> {source} </s>"


@pytest.mark.parametrize("prompt", ["src", "prev_output"])
def test_a_prompt_holds_them_too(data, prompt):
    one, text = example(data, 1, prompt_type=prompt)
    prompted = "<s> is it dark ? object: dark paint" + " </s>" * (prompt == "src")
    assert text(one.prev_output) == f"{prompted} green"
    assert text(one.target[one.prompt_length - 1 :]) == "green </s>"


def test_training_and_generation_read_them(data, tmp_path):
    checkpoint = files.train(
        TASK, data, tmp_path / "out", "--add-object", "--max-object-length", "3", updates=2
    )
    given = ["--max-len-b", "3", "--gen-subset", "valid", "--max-object-length", "3"]
    lines = files.generate(TASK, data, checkpoint, "--add-object", *given)
    assert lines["S"][1][0][0].endswith("object: dark paint")
    assert files.generate(TASK, data, checkpoint, *given)["S"] == lines["S"]  # the checkpoint's


def test_data_without_objects_is_worth_one_warning(data, caplog):
    with caplog.at_level(logging.WARNING):
        example(data, 0)
        assert not caplog.records
        example(data, 0, "test")
    (record,) = caplog.records
    assert "none of the first 6 rows has predicted objects (column 4)" in record.getMessage()


def test_what_cannot_hold_objects_is_rejected(data, tmp_path):
    with pytest.raises(ValueError, match=r"uniq_id, image, question, answers, objects"):
        example(data, 0, selected_cols="0,5,2,3")
    with pytest.raises(ValueError, match=r"(line |:)1\b.*column 5 holds an image, not text"):
        example(data, 0, selected_cols="0,5,2,3,5")
    with pytest.raises(ValueError, match="--max-object-length 0"):
        files.setup(TASK, data, add_object=True, max_object_length=0)
    folder = files.write_dictionary(tmp_path / "d", WORDS)
    with pytest.raises(ValueError, match="the dictionary lacks 'object:'"):
        files.setup(TASK, data, add_object=True, bpe_dir=str(folder))

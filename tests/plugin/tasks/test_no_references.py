"""Generation for rows without captions or labels, and entailment with a file's own labels."""

import logging

import pytest
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK

from ofa_exit.evaluation.figures.table import read_run
from ofa_exit.plugin.errors import UsageError

ENTAILMENT = "mue_snli_ve"
# Fixtures.
data, checkpoint = caption_task.data, caption_task.checkpoint


@pytest.fixture(autouse=True)
def no_report_at_exit(monkeypatch):
    monkeypatch.setattr("atexit.register", lambda *_: None)


def unlabelled(folder, empty, rows=11, row=files.caption_row, column=2, words=files.WORDS):
    """Write rows whose numbers in ``empty`` have no reference."""
    files.write_dictionary(folder, words)
    table = [row(number) for number in range(rows)]
    for number in empty:
        table[number][column] = " "
    files.write_tsv(folder / "test.tsv", table)
    return folder


SCORING = ("--scoring", "coco_caption", "--coco-tokenizer", "plain")


def test_captions_are_generated_without_references(data, checkpoint, tmp_path, caplog):
    expected = files.generate(TASK, data, checkpoint)
    caplog.set_level(logging.INFO)
    lines = files.generate(TASK, unlabelled(tmp_path / "d", range(11)), checkpoint, *SCORING)
    assert lines["D"] == expected["D"] and lines["T"] == {} and "result" not in lines
    assert "Exit summary" in lines["report"][-1]
    assert len([r for r in caplog.records if "without references" in r.message]) == 1


@pytest.mark.parametrize("empty", [range(8, 11), range(4, 8), [1, 9, 10], range(10)])
def test_rows_with_references_are_scored(data, checkpoint, tmp_path, empty, caplog):
    """The last batch, the middle one, a part of each, or all but the last row have none."""
    caplog.set_level(logging.INFO)
    lines = files.generate(TASK, unlabelled(tmp_path / "d", empty), checkpoint, *SCORING)
    assert sorted(lines["D"]) == list(range(11))
    assert f"({11 - len(list(empty))} captions" in lines["result"]
    assert lines["T"].keys() == set(range(11)) - set(empty)
    (message,) = {r.message for r in caplog.records if "without references" in r.message}
    assert message == "rows without references have no T- lines and are not scored"


def test_a_generation_without_references_has_layers_but_no_quality(checkpoint, tmp_path, capsys):
    folder, results = unlabelled(tmp_path / "d", range(11)), tmp_path / "results"
    lines = files.generate(TASK, folder, checkpoint, "--results-path", str(results))
    (results / "log.txt").write_text("\n".join(lines["report"]))
    run = read_run(results)
    assert run["sentences"] == 11 and "CIDEr" not in run


@pytest.mark.parametrize("option", [["--prefix-size", "1"], ["--score-reference"]])
def test_options_that_read_references_are_rejected(checkpoint, tmp_path, option):
    folder = unlabelled(tmp_path / "d", [5])
    with pytest.raises(UsageError, match=f"{option[0]}: row c5 has no reference"):
        files.generate(TASK, folder, checkpoint, *option)


def test_training_and_validation_still_need_references(data, checkpoint, tmp_path):
    folder = unlabelled(tmp_path / "d", [0], rows=4)
    for name in ("train", "valid"):
        (folder / f"{name}.tsv").write_text((folder / "test.tsv").read_text())
    with pytest.raises(UsageError, match=r"train\.tsv, line 1, field 'caption'"):
        files.train(TASK, folder, tmp_path / "saved", updates=1)
    with pytest.raises(UsageError, match=r"valid\.tsv, line 1, field 'caption'"):
        files.validate(folder, checkpoint, "--task", TASK, "--batch-size", "2")


def entailment_row(number):
    row = files.entailment_row(number)
    row[5] = ("True", "false")[number % 2]
    return row


def test_entailment_with_the_labels_of_the_file(tmp_path):
    """Trained, validated, scored, and generated for rows without labels."""
    words = (*files.WORDS, "true", "false")
    folder = unlabelled(tmp_path / "d", [], 8, entailment_row, 5, words)
    for name in ("train", "valid"):
        (folder / f"{name}.tsv").write_text((folder / "test.tsv").read_text())
    labels = ("--labels", "true,false")
    saved = files.train(ENTAILMENT, folder, tmp_path / "saved", *labels, "--eval-acc", updates=2)
    lines = files.generate(ENTAILMENT, folder, saved, *labels, "--scoring", "accuracy")
    assert [text[0][0] for text in lines["T"].values()] == ["true", "false"] * 4
    assert {texts[0][1] for texts in lines["D"].values()} <= {"true", "false"}
    assert "of 8)" in lines["result"]
    assert files.generate(ENTAILMENT, folder, saved)["D"] == lines["D"]  # the checkpoint's labels
    with pytest.raises(UsageError, match=r"--labels is true=yes,false=no, .* with true,false"):
        files.generate(ENTAILMENT, folder, saved, "--labels", "true=yes,false=no")
    bare = unlabelled(tmp_path / "bare", range(8), 8, entailment_row, 5, words)
    assert files.generate(ENTAILMENT, bare, saved, *labels)["D"] == lines["D"]
    with pytest.raises(UsageError, match="field 'label': unknown label 'True'"):
        files.train(ENTAILMENT, folder, tmp_path / "other", updates=1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("true", "two answers or more"),
        ("true,,false", "'' is empty"),
        ("true=,false", "'true=' is empty"),
        ("true,TRUE", "'TRUE' comes twice"),
        ("a=yes,b=yes", "two answers or more"),
        ("true,giraffe", "lacks the answer 'true'"),
    ],
)
def test_invalid_labels_are_rejected_at_setup(tmp_path, labels, message):
    folder = unlabelled(tmp_path / "d", [], 2, entailment_row, 5)
    with pytest.raises(UsageError, match=message):
        files.setup(ENTAILMENT, folder, labels=labels)


def test_labels_may_be_answered_in_other_words(tmp_path):
    folder = unlabelled(tmp_path / "d", [], 4, entailment_row, 5)
    task = files.setup(ENTAILMENT, folder, labels="true=yes,false=no")
    task.load_dataset("test")
    rows = task.dataset("test")
    assert [rows[n].references for n in range(3)] == [["yes"], ["no"], ["yes"]]
    assert len(task.trie.answers) == 2


@pytest.mark.parametrize(
    ("task", "missing", "options"),
    [
        (TASK, "describe", {}),
        (ENTAILMENT, '"', {}),
        (ENTAILMENT, "imply", {"add_caption": True}),
        ("mue_vqa", "?", {}),
    ],
)
def test_a_missing_word_of_the_prompt_is_an_error_at_setup(tmp_path, task, missing, options):
    words = tuple(word for word in files.WORDS if word != missing)
    folder = files.write_dictionary(tmp_path / "d", words)
    with pytest.raises(UsageError, match=f"dictionary lacks '{missing.replace('?', '.')}' of"):
        files.setup(task, folder, **options)


def test_two_splits_are_never_read_from_one_file_in_silence(data, checkpoint, tmp_path):
    pair = f"{data}/a.tsv,{data}/b.tsv"
    for name, source in (("a", "train"), ("b", "valid")):
        (data / f"{name}.tsv").write_text((data / f"{source}.tsv").read_text())
    with pytest.raises(UsageError, match=r"'valid' and 'test' are both read from .*b\.tsv"):
        files.train(TASK, pair, tmp_path / "saved", "--valid-subset", "valid,test", updates=1)
    with pytest.raises(UsageError, match=r"no file is called test\.tsv"):
        files.generate(TASK, f"{data}/train.tsv,{data}/valid.tsv", checkpoint)
    triple = f"{data}/train.tsv,{data}/valid.tsv,{data}/test.tsv"
    assert len(files.generate(TASK, triple, checkpoint)["D"]) == 11
    lines = files.generate(TASK, triple, checkpoint, "--gen-subset", "valid")
    assert len(lines["D"]) == 9


def test_a_second_training_with_two_validation_files_starts(data, tmp_path):
    """The index of valid1.tsv is no third validation set."""
    folder = files.caption_folder(tmp_path / "d")
    (folder / "valid1.tsv").write_text((folder / "valid.tsv").read_text())
    for name in ("first", "second"):
        files.train(TASK, folder, tmp_path / name, "--valid-subset", "valid,valid1", updates=1)

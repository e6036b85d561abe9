"""ofa-exit check and dict on VQA files: what --eval-acc and --add-object need of every row."""

import pytest
from helpers import task_files as files
from helpers.vqa_samples import WORDS, row

from ofa_exit.cli.main import main
from ofa_exit.data.dictionary import read_dictionary

TASK = "mue_vqa"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def answered(folder, *answers, objects=""):
    rows = [row(number, "one", objects) for number in range(len(answers))]
    for fields, field in zip(rows, answers):
        fields[3] = field
    return files.write_tsv(folder / "valid.tsv", rows)


def joined(*answers):
    return "&&".join(f"1.0|!+{answer}" for answer in answers)


NINE, TEN = joined(*["red"] * 9), joined(*["red"] * 10)


@pytest.mark.parametrize(
    ("answers", "metric", "bad"),
    [
        ((NINE, ""), None, {1: "9 answers, 'red' among them 9", 2: "no answer, and OFA's score"}),
        ((joined("red"), "", joined("no")), None, {2: "no answer, and exact match"}),
        ((TEN, NINE), None, {2: "9 answers"}),
        ((TEN, TEN), None, {}),
        ((TEN, TEN), "exact_match", {1: "10 answers", 2: "10 answers"}),
        (("", ""), None, {1: "no answer", 2: "no answer"}),
        ((joined("red"), "red"), None, {2: "the answers are malformed"}),
    ],
)
def test_rows_that_validation_rejects_are_listed(tmp_path, capsys, answers, metric, bad):
    file = answered(tmp_path, *answers)
    given = ("--vqa-metric", metric) if metric else ()
    assert run("check", file, "--task", "vqa", *given) == int(bool(bad))
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.startswith(f"{file}:") and "answers: " in line]
    assert len(listed) == len(bad)
    for line, (number, message) in zip(listed, bad.items()):
        assert line.startswith(f"{file}:{number}: answers: {message}")
    assert f"{len(answers)} rows for validation, {len(bad)} of them bad" in lines[-1]


def test_check_agrees_with_validation(tmp_path):
    folder = files.write_dictionary(tmp_path, WORDS)
    answered(folder, NINE, "")
    task = files.setup(TASK, folder, eval_acc=True)
    with pytest.raises(ValueError, match=r"valid\.tsv, line 1, field 'answers': 9 answers"):
        task.load_dataset("valid")
    # Without a measure both rows are fine.
    assert run("check", folder / "valid.tsv", "--task", "vqa", "--use", "generation") == 0


def test_a_dictionary_of_ofa_exit_serves_objects(tmp_path, capsys):
    file = answered(tmp_path, joined("red"), joined("red"), objects="sofa&&lamp")
    out, given = tmp_path / "dict.txt", (file, "--task", "vqa")
    objects = ("--add-object", "--max-object-length", "1")
    assert run("dict", out, *given, *objects) == 0
    counts = dict(line.split() for line in read_dictionary(out))
    assert counts["object:"] == counts["sofa"] == "2" and "lamp" not in counts
    assert run("check", *given, *objects) == 0
    assert "read as unknown" not in capsys.readouterr().out
    assert run("dict", out, *given) == 0
    counts = dict(line.split() for line in read_dictionary(out))
    assert counts["object:"] == "1" and "sofa" not in counts
    files.setup(TASK, tmp_path, add_object=True)  # starts


def test_check_reads_objects_like_training(tmp_path, capsys):
    file = answered(tmp_path, joined("red"), objects="sofa")
    files.write_dictionary(tmp_path, WORDS)
    assert run("check", file, "--task", "vqa") == 0
    assert run("check", file, "--task", "vqa", "--add-object") == 2
    assert "lacks 'object:' of the task's prompt" in capsys.readouterr().err
    files.write_dictionary(tmp_path, (*WORDS, "object:"))
    assert run("check", file, "--task", "vqa", "--add-object") == 0
    assert capsys.readouterr().out.endswith("read as unknown: 1\n")
    given = ("--add-object", "--selected-cols", "0,5,2,3,5")
    assert run("check", file, "--task", "vqa", *given) == 1
    assert f"{file}:1: objects: column 5 holds an image" in capsys.readouterr().out


def test_large_images_pass_with_the_option_that_messages_name(tmp_path, capsys):
    file = answered(tmp_path, joined("red"))
    assert run("check", file, "--task", "vqa", "--max-image-pixels", 10) == 1
    assert "raise --max-image-pixels" in capsys.readouterr().out
    assert run("check", file, "--task", "vqa", "--max-image-pixels", 256) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vqa", "--vqa-metric", "bleu"), "--vqa-metric 'bleu': choose from auto, vqa_accuracy"),
        (("caption", "--vqa-metric", "auto"), "--vqa-metric: --task caption has none"),
        (("caption", "--add-object"), "--add-object: --task caption reads no objects"),
        (("vqa", "--add-object", "--max-object-length", "0"), "--max-object-length 0: give"),
        (("vqa", "--prompt-type", "all"), "--prompt-type 'all': choose from none, src"),
        (("caption", "--prompt-type", "src"), "--prompt-type: --task caption has no such"),
    ],
)
def test_options_that_do_not_fit_end_on_one_line(tmp_path, capsys, arguments, message):
    assert run("check", answered(tmp_path, joined("red")), "--task", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_prompt_counts_among_the_positions(tmp_path, capsys):
    """An answer of 1000 words fits; with the source before it, it does not."""
    long = " ".join(["red"] * 1000)
    file = answered(tmp_path, joined(long))
    fields = file.read_text().split("\t")
    fields[2] = " ".join(["red"] * 80) + "?"
    file.write_text("\t".join(fields))
    assert run("check", file, "--task", "vqa") == 0
    assert run("check", file, "--task", "vqa", "--prompt-type", "src") == 1
    assert "1083 tokens, more than the 1024" in capsys.readouterr().out

"""Splitting a validation file into rows to train on and held-out rows."""

import re

import pytest
from helpers.prepare_samples import rows

from ofa_exit.cli.holdout import main
from ofa_exit.data.answers import join_answers
from ofa_exit.data.tsv import TsvError
from ofa_exit.prepare.holdout import part


def write(path, lines):
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def captions(images, rows_each=1):
    return [
        [f"{image}{at}", f"i{image}", f"a dog {image}&& the  dog, {at}", "", f"IMAGE{image}"]
        for image in range(images)
        for at in range(rows_each)
    ]


def test_each_caption_gets_a_row_and_each_image_one_side(tmp_path, capsys):
    source = write(tmp_path / "valid.tsv", captions(10, 3))
    out = tmp_path / "out"
    assert main(["caption", str(source), str(out)]) == 0
    train, valid = rows(out / "train.tsv"), rows(out / "valid.tsv")
    assert len(train) == 8 * 3 * 2 and len(valid) == 2 * 3
    images = {row[1] for row in train}, {row[1] for row in valid}
    assert len(images[0]) == 8 and len(images[1]) == 2 and not images[0] & images[1]
    first = next(row for row in captions(10, 3) if row[1] in images[0])
    assert train[0] == [*first[:2], first[2].split("&&")[0], *first[3:]]
    assert train[1][2] == "the  dog, 0"
    assert all(row in captions(10, 3) for row in valid)  # unchanged
    printed = capsys.readouterr().out
    assert re.search(r"train\.tsv\D+48\D+8\D+valid\.tsv\D+6\D+2\b", printed)

    before = (out / "train.tsv").read_bytes()
    write(source, reversed(captions(10, 3)))  # the image alone decides
    assert main(["caption", str(source), str(out)]) == 0
    assert sorted(before.splitlines()) == sorted((out / "train.tsv").read_bytes().splitlines())


def question(number, *answers):
    field = join_answers((1.0, answer) for answer in answers)
    return [str(number), f"i{number}", "what?", field, "", "IMAGE"]


def test_answer_weights_match_training_files(tmp_path, capsys):
    ten = ["net"] * 6 + ["Mesh", "mesh", "", "yes"]
    source = write(tmp_path / "valid.tsv", [question(n, *ten) for n in range(5)])
    assert main(["question", str(source), str(tmp_path / "all")]) == 0
    fields = [row[3] for row in rows(tmp_path / "all" / "train.tsv")]
    assert fields == ["1.0|!+net", "0.6|!+mesh", "0.3|!+yes"] * 4
    candidates = tmp_path / "answers.txt"
    candidates.write_text("mesh\nno\n")
    given = ["--candidates", str(candidates), "--share", "0.6"]
    assert main(["question", str(source), str(tmp_path / "few"), *given]) == 0
    assert [row[3] for row in rows(tmp_path / "few" / "train.tsv")] == ["0.6|!+mesh"] * 3
    assert (tmp_path / "few" / "answers.txt").read_text() == "mesh\nno\n"
    candidates.write_text("no\n")
    capsys.readouterr()
    assert main(["question", str(source), str(tmp_path / "none"), *given]) == 0
    assert re.search(r"left out\D+3\D", capsys.readouterr().out)


def test_a_single_answer_is_unchanged(tmp_path):
    source = write(tmp_path / "valid.tsv", [question(n, "yes") for n in range(2)])
    assert main(["question", str(source), str(tmp_path / "out")]) == 0
    assert [row[3] for row in rows(tmp_path / "out" / "train.tsv")] == ["1.0|!+yes"]


def test_a_dialogue_round_keeps_its_true_answer(tmp_path):
    lines = [
        [f"{n}_1", str(n), "a man.", "why?", "no&&yes&&red", "1", "0&&1&&0.5", "IMAGE"]
        for n in range(4)
    ]
    source = write(tmp_path / "valid.tsv", lines)
    assert main(["dialogue", str(source), str(tmp_path / "out")]) == 0
    train, valid = (rows(tmp_path / "out" / f"{name}.tsv") for name in ("train", "valid"))
    assert [row[4:] for row in train] == [["yes", "0", "", "IMAGE"]] * 3
    assert len(valid) == 1 and valid[0] in lines


def test_invalid_files_are_rejected(tmp_path, capsys):
    out = tmp_path / "out"
    source = write(tmp_path / "valid.tsv", captions(3))
    with pytest.raises(TsvError, match=r"5 columns.*question"):
        part("question", source, out)
    with pytest.raises(ValueError, match=r"--share 1\.0"):
        part("caption", source, out, 1.0)
    with pytest.raises(ValueError, match=r"valid\.tsv"):
        part("caption", write(tmp_path / "valid.tsv", captions(1)), out)
    lines = [question(n, "yes") for n in range(3)]
    for line in lines:
        line[3] = ""
    source = write(tmp_path / "test.tsv", lines)
    assert main(["question", str(source), str(out)]) == 2
    assert "no answers" in capsys.readouterr().err
    assert not list(out.glob("*.tsv")) and not list(out.glob(".*"))

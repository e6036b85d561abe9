"""Answers of a column and lists of candidates: text files, and OFA's pickle as plain data."""

import collections
import os
import pickle

import numpy as np
import pytest

from ofa_exit.data.answers import (
    ONE,
    TEN,
    WEIGHTED,
    answer_form,
    answer_references,
    parse_answers,
    read_answer_list,
    reference_answers,
)

LABELS = {"": 3, "net": 0, "pitcher": 1, "café au lait": 2}


@pytest.mark.parametrize(
    ("field", "form", "references"),
    [
        ("", None, []),
        ("1.0|!+yes", ONE, ["yes"]),
        ("0.6|!+yes", WEIGHTED, ["0.6|!+yes"]),
        ("1.0|!+yes&&0.6|!+no", WEIGHTED, ["1.0|!+yes", "0.6|!+no"]),
        ("&&".join(["1.0|!+a"] * 10), TEN, ["a"] * 10),
        ("&&".join(["0.3|!+a"] * 10), WEIGHTED, ["0.3|!+a"] * 10),
    ],
)
def test_the_form_of_a_row(field, form, references):
    answers = parse_answers(field)
    assert answer_form(answers) == form
    assert answer_references(answers) == references
    assert reference_answers(references) == answers


def test_a_mark_in_a_reference_is_no_confidence():
    assert reference_answers(["a|!+b"]) == [(1.0, "a|!+b")]


# Python 2's protocols 0 to 2 hold texts as bytes; its pickle of {'net': 0, 'café': 1}.
PYTHON_2 = b"(dp0\nS'net'\np1\nI0\nsS'caf\\xc3\\xa9'\np2\nI1\ns."


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ofas_pickle_is_read(tmp_path, protocol):
    path = tmp_path / "trainval_ans2label.pkl"
    path.write_bytes(pickle.dumps(LABELS, protocol))
    assert read_answer_list(path) == [
        (f"{path}, answer {number}", text) for number, text in enumerate(LABELS, start=1)
    ]


def test_a_pickle_of_python_2_is_read(tmp_path):
    path = tmp_path / "trainval_ans2label.pkl"
    path.write_bytes(PYTHON_2)
    assert [text for _, text in read_answer_list(path)] == ["net", "café"]


def test_a_pickle_is_known_by_its_content(tmp_path):
    path = tmp_path / "answers"
    path.write_bytes(pickle.dumps(LABELS))
    assert len(read_answer_list(path)) == len(LABELS)


class Attack:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickles(folder):
    whole = pickle.dumps({f"answer {number}": number for number in range(100)})
    yield "command", pickle.dumps({"yes": Attack(folder / "attacked")}), "may run code"
    yield "class", pickle.dumps(collections.OrderedDict(a=1)), "collections.OrderedDict"
    yield "numpy", pickle.dumps({"yes": np.int64(1)}), "numpy"
    yield "list", pickle.dumps(["yes", "no"]), "no dictionary from answers to numbers"
    yield "labels", pickle.dumps({0: "yes"}), "no dictionary from answers to numbers"
    yield "booleans", pickle.dumps({"yes": True}), "no dictionary"
    yield "truncated", whole[: len(whole) // 2], "not a pickle of plain data"
    yield "empty", b"", "not a pickle of plain data"
    yield "pointer", b"version https://git-lfs.github.com/spec/v1\n", "not a pickle"
    yield "huge", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "not a pickle of plain data"
    yield "reference", b"\x80\x02}U\x01aPx\n.", "not a pickle of plain data"


def test_other_pickles_are_rejected_on_one_line_and_run_nothing(tmp_path):
    for name, content, message in pickles(tmp_path):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            read_answer_list(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "attacked").exists()


def test_flipped_bytes_are_rejected_or_read(tmp_path):
    """A damaged pickle raises nothing but ValueError."""
    whole, path = pickle.dumps(LABELS), tmp_path / "labels.pkl"
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0xFF]) + whole[index + 1 :])
        try:
            read_answer_list(path)
        except ValueError as error:
            assert str(path) in str(error)


def test_a_text_file_names_its_lines(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("yes\n\nno\n")
    assert read_answer_list(path) == [
        (f"{path}, line {number}", text) for number, text in enumerate(["yes", "", "no"], start=1)
    ]

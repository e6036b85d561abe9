"""GQA's metrics, worked by hand from the published evaluation."""

import json

import pytest

from ofa_exit.evaluation.metrics.gqa import score_gqa


def question(answer, structural, *, group=None, entailed=(), steps=(), balanced=True, **more):
    return {
        "question": "Is it red or blue?",
        "answer": answer,
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
        "groups": {"global": group},
        "entailed": list(entailed),
        "semantic": [{"operation": name, "argument": argument} for name, argument in steps],
        **more,
    }


QUESTIONS = {
    # "select" is a step, "exist" is none: 1 step
    "1": question(
        "yes", "verify", entailed=["1", "2", "5"], steps=[("select", "a"), ("exist", "?")]
    ),
    # "query: name" is none and "relate: x" is one
    "2": question("red", "query", group="colour", steps=[("relate", "x"), ("query", "name")]),
    "3": question("red", "query", group="colour", entailed=["1"]),
    "4": question("blue", "query", group="colour"),
    "5": question("no", "verify", balanced=False),
}
ANSWERS = {"1": "yes", "2": "red", "3": "blue", "4": "Blue", "5": "yes"}


@pytest.fixture
def files(tmp_path):
    def make(answers=ANSWERS, questions=QUESTIONS):
        results = [{"questionId": key, "prediction": value} for key, value in answers.items()]
        (tmp_path / "results.json").write_text(json.dumps(results))
        (tmp_path / "questions.json").write_text(json.dumps(questions))
        return tmp_path / "results.json", [tmp_path / "questions.json"]

    return make


def test_worked_example(files):
    balanced = {key: ANSWERS[key] for key in "1234"}
    scores = score_gqa(*files(balanced))
    assert scores.values == {
        "accuracy": 50,  # 1 and 2; "Blue" is not "blue"
        "binary": 100,
        "open": pytest.approx(100 / 3),
        # Group colour, 3 questions. Annotated red 2, blue 1; predicted red 1, blue 1, Blue 1:
        # (1 - 2)² / 2 + (1 - 1)² / 1 = 0.5, its only group's weight 1, over 100.
        "distribution": pytest.approx(0.005),
    }
    assert scores.counted == 4
    assert scores.breakdowns == {
        "structural type": {"query": (pytest.approx(100 / 3), 3), "verify": (100, 1)},
        "semantic type": {"attr": (50, 4)},
        "reasoning steps": {"0": (0, 2), "1": (100, 2)},
        "words of the question": {"5": (50, 4)},
    }
    assert [note.split(" missing")[0] for note in scores.notes] == [
        "consistency",
        "validity and plausibility",
        "grounding",
    ]


def test_consistency(files):
    # 1 is right and entails 2 (right) and 5 (wrong), itself apart: 1/2. 3 is wrong: not asked.
    # 2 and 4 entail nothing.
    assert score_gqa(*files(), consistency=True).values["consistency"] == 50
    right = score_gqa(*files({**ANSWERS, "3": "red"}), consistency=True)
    assert right.values["consistency"] == 75  # and 3, which entails 1
    with pytest.raises(ValueError, match=r"no result for 1 of 5 .* question 5"):
        score_gqa(*files({key: ANSWERS[key] for key in "1234"}), consistency=True)
    without = {key: entry for key, entry in QUESTIONS.items() if key != "5"}
    answers = {key: ANSWERS[key] for key in "1234"}
    with pytest.raises(ValueError, match=r"question 1: it entails question 5.*all_questions"):
        score_gqa(*files(answers, without), consistency=True)


def test_validity_and_plausibility(files, tmp_path):
    common = question("color", "compare")
    common["types"]["detailed"] = "compareCommon"
    questions = {"1": QUESTIONS["1"], "2": QUESTIONS["2"], "6": common}
    choices = {
        "1": {"valid": ["yes", "no"], "plausible": ["yes", "no"]},
        "2": {"valid": ["red", "blue"], "plausible": ["blue"]},
        "6": {"valid": [], "plausible": []},  # what things have in common is one of three
    }
    path = tmp_path / "choices.json"
    path.write_text(json.dumps(choices))
    answers = {"1": "maybe", "2": "red", "6": "shape"}
    values = score_gqa(*files(answers, questions), choices=path).values
    assert values["validity"] == pytest.approx(200 / 3)
    assert values["plausibility"] == pytest.approx(100 / 3)
    path.write_text(json.dumps({"1": choices["1"]}))
    with pytest.raises(ValueError, match=r"choices.json: no '2'"):
        score_gqa(*files(answers, questions), choices=path)


def test_questions_with_answers_only_give_accuracy_only(files):
    scores = score_gqa(*files({"1": "yes"}, {"1": {"answer": "yes"}}))
    assert scores.values == {"accuracy": 100}
    assert scores.notes[0] == "binary and open missing: the questions have no types"


def test_questions_in_several_files(files, tmp_path):
    results, (first,) = files({key: ANSWERS[key] for key in "1234"})
    (tmp_path / "b.json").write_text(json.dumps({"4": QUESTIONS["4"]}))
    with pytest.raises(ValueError, match=r"b.json, question 4: another file"):
        score_gqa(results, [first, tmp_path / "b.json"])
    rest = {key: entry for key, entry in QUESTIONS.items() if key != "4"}
    first.write_text(json.dumps(rest))
    assert score_gqa(results, [first, tmp_path / "b.json"]).values["accuracy"] == 50


def test_answers_to_questions_of_other_files_are_ignored(files):
    scores = score_gqa(*files({**ANSWERS, "9": "x"}))
    assert scores.values == score_gqa(*files(ANSWERS)).values
    assert any(note.startswith("1 results are for questions that are not") for note in scores.notes)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"1": "yes"}, r"no result for 3 of 4 .* question 2, 3, 4"),
        ({"5": "no"}, "no result for 4 of 4"),
    ],
)
def test_files_that_do_not_fit_raise(files, answers, message):
    with pytest.raises(ValueError, match=message):
        score_gqa(*files(answers))

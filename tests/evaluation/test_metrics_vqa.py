"""VQA accuracy and its answer processing against the published evaluation, worked by hand."""

import hashlib
import json

import pytest

from ofa_exit.evaluation.metrics.vqa import score_vizwiz, score_vqa
from ofa_exit.evaluation.metrics.vqa_answers import (
    CONTRACTIONS,
    VIZWIZ_CONTRACTIONS,
    answer_accuracy,
    normalise_answer,
    vizwiz_answer_accuracy,
)


def ten(*answers):
    """Ten answers; the last one is repeated."""
    return [*answers, *[answers[-1]] * (10 - len(answers))]


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    [
        (0, 0),
        # Left out, the match leaves 0 of 9 (0); another leaves it in (1/3, nine times).
        (1, 0.3),
        (2, (2 * 1 / 3 + 8 * 2 / 3) / 10),  # 0.6
        (3, (3 * 2 / 3 + 7 * 1) / 10),  # 0.9
        (4, 1),
        (9, 1),
    ],
)
def test_leaving_one_out(matches, accuracy):
    answers = ["red"] * matches + [f"colour {number}" for number in range(10 - matches)]
    assert answer_accuracy("red", answers) == pytest.approx(accuracy)


def test_no_processing_if_all_annotators_agree():
    assert answer_accuracy("yes", ten("yes")) == 1
    assert answer_accuracy("Yes", ten("yes")) == 0
    assert answer_accuracy("two", ten("2")) == 0
    # One other answer, and all are processed.
    assert answer_accuracy("Yes", ten("no", "yes")) == 1
    assert answer_accuracy("The Two.", ten("3", "2")) == 1
    # Line breaks, tabs and spaces at the ends go before the comparison of the annotators.
    assert answer_accuracy(" a\tdog\n", ten("a dog ", "a\ndog")) == 1


@pytest.mark.parametrize(
    ("answer", "processed"),
    [
        ("A Dog", "dog"),
        ("the", ""),
        ("none", "0"),
        ("Ten men", "10 men"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("don't", "don't"),  # apostrophes are no punctuation here
        ("couldntve", "couldntve"),  # only one apostrophe may be missing
        ("couldnt've", "couldn't've"),
        ("lets", "lets"),  # not in the list
        ("somebody'd", "somebodyd"),  # the wrong way round in the list
        ("Im Ive", "im ive"),  # in the list with a capital only, which no word has by then
        ("black/white", "black white"),
        ("black / white", "black white"),  # beside spaces it goes: two spaces, then one
        ("black- white-red", "black whitered"),  # beside a space somewhere: gone everywhere
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a number with a comma: all marks are removed, none parted
        ("yes,no", "yes no"),
        ("2.5", "2.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("a.m.", "am"),
        ("." * 34, ".."),  # 32 at most
        ("don:t", "don:t"),  # the colon is no mark
    ],
)
def test_answer_processing(answer, processed):
    assert normalise_answer(answer) == processed


def test_contractions_equal_the_published_ones():
    """Lines "key value", sorted, of the published list without entries that have no effect."""
    lines = "\n".join(f"{key} {value}" for key, value in sorted(CONTRACTIONS.items()))
    assert len(CONTRACTIONS) == 114
    assert hashlib.sha256(lines.encode()).hexdigest() == (
        "f2c800b1132e79302dd72686ce8bba16120f1873f98a85561222e89317336e7a"
    )
    assert not {"let's", "she's", "im", "ive", "i'dve", "id've"} & CONTRACTIONS.keys()


def test_vizwiz_contractions_equal_the_published_ones():
    """Its evaluation has VQA's list with ’ instead of ', except for some."""
    lines = "\n".join(f"{key} {value}" for key, value in sorted(VIZWIZ_CONTRACTIONS.items()))
    assert len(VIZWIZ_CONTRACTIONS) == 114
    assert hashlib.sha256(lines.encode()).hexdigest() == (
        "7601d91c7c3871554dc69d1d2ac71025a584f9c7df2b6562f5bfcf840ef9addc"
    )
    assert vizwiz_answer_accuracy("dont know", ten("don't know")) == 0
    assert vizwiz_answer_accuracy("dont know", ten("don’t know")) == 1
    assert vizwiz_answer_accuracy("cant know", ten("can't know")) == 1


def test_vizwiz_processes_the_prediction_only():
    assert vizwiz_answer_accuracy("Unanswerable.", ten("unanswerable")) == 1
    assert vizwiz_answer_accuracy("yes", ten("no", "Yes")) == 0
    assert vizwiz_answer_accuracy("the grey", ten("gray", "gray", "gray", "grey")) == 1
    with pytest.raises(ValueError, match="there are none"):
        vizwiz_answer_accuracy("yes", [])


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def annotation(number, answers, kind="other", question="what is"):
    listed = [
        {"answer_id": at, "answer": answer, "answer_confidence": "yes"}
        for at, answer in enumerate(answers, start=1)
    ]
    return {
        "question_id": number,
        "image_id": 7,
        "answers": listed,
        "answer_type": kind,
        "question_type": question,
    }


ANNOTATIONS = [
    annotation(10, ten("yes"), "yes/no", "is the"),
    annotation(11, ten("no", "no", "yes"), "yes/no", "is the"),
    annotation(12, ten("2", "two", "3"), "number", "how many"),
]
RESULTS = [
    {"question_id": 10, "answer": "yes"},  # 1
    {"question_id": 11, "answer": "no"},  # 2 matches: 0.6
    {"question_id": 12, "answer": "2"},  # "two" is "2": 2 matches, 0.6
]


@pytest.fixture
def vqa(tmp_path):
    annotations = write(tmp_path / "annotations.json", {"annotations": ANNOTATIONS})
    return annotations, write(tmp_path / "results.json", RESULTS)


def test_vqa_file(vqa, tmp_path):
    annotations, results = vqa
    asked = [{"question_id": number, "question": "?"} for number in (12, 10, 11)]
    questions = write(tmp_path / "questions.json", {"questions": asked})
    scores = score_vqa(results, annotations, questions)
    assert scores.values == {"VQA accuracy": pytest.approx(100 * (1 + 0.6 + 0.6) / 3)}
    assert scores.breakdowns == {
        "answer type": {
            "number": (pytest.approx(60), 1),
            "yes/no": (pytest.approx(80), 2),
        },
        "question type": {
            "how many": (pytest.approx(60), 1),
            "is the": (pytest.approx(80), 2),
        },
    }
    assert "VQA accuracy = 73.33\n(3 questions)\n" in scores.text()
    write(questions, {"questions": [*asked, {"question_id": 13}]})
    with pytest.raises(ValueError, match=r"not of one split: 1 questions .* 13"):
        score_vqa(results, annotations, questions)


def test_okvqa_counts_stems_and_names_categories(tmp_path):
    entry = annotation(1, ten("pony tail"), question="eight")
    for answer in entry["answers"]:
        answer["raw_answer"] = "pony tails"
    content = {"annotations": [entry], "question_types": {"eight": "People and Everyday life"}}
    annotations = write(tmp_path / "annotations.json", content)
    for answer, accuracy in (("pony tail", 100), ("pony tails", 0)):
        results = write(tmp_path / "results.json", [{"question_id": 1, "answer": answer}])
        scores = score_vqa(results, annotations)
        assert scores.values == {"VQA accuracy": accuracy}
        assert list(scores.breakdowns["question type"]) == ["People and Everyday life"]


def test_vizwiz_file(tmp_path):
    entries = [
        {
            "image": f"VizWiz_val_0000000{number}.jpg",
            "question": "?",
            # Without numbers: equal answers of equal confidence are still several.
            "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in answers],
            "answer_type": kind,
            "answerable": 1,
        }
        for number, (answers, kind) in enumerate(
            [(ten("unanswerable"), "unanswerable"), (ten("can", "can", "tin"), "other")]
        )
    ]
    annotations = write(tmp_path / "val.json", entries)
    answers = [("VizWiz_val_00000001.jpg", "Can"), ("VizWiz_val_00000000.jpg", "unanswerable")]
    results = write(tmp_path / "r.json", [dict(zip(("image", "answer"), pair)) for pair in answers])
    scores = score_vizwiz(results, annotations)
    assert scores.values == {"VQA accuracy": pytest.approx(80)}  # 1 and 2 matches, 0.6
    assert scores.breakdowns == {
        "answer type": {"other": (pytest.approx(60), 1), "unanswerable": (100, 1)}
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.append({"question_id": 99, "answer": "x"}), r"1 of 4 results .* 99"),
        (lambda r: r.pop(1), r"no result for 1 of 3 .* question 11.*--allow-missing"),
        (lambda r: r.append(dict(r[0])), r"entry 4: question_id 10 comes twice"),
        (lambda r: r.append({"answer": "x"}), r"entry 4: no 'question_id'"),
        (lambda r: r[0].update(answer=3), r"question_id 10: 'answer' is int '3'"),
        (lambda r: r[0].update(question_id=True), r"entry 1: 'question_id' is bool"),
        (lambda r: r.clear(), "has no entries"),
    ],
)
def test_invalid_results_name_file_and_question(vqa, change, message):
    annotations, results = vqa
    changed = json.loads(results.read_text())
    change(changed)
    write(results, changed)
    with pytest.raises(ValueError, match=message) as raised:
        score_vqa(results, annotations)
    assert str(results) in str(raised.value)


def test_a_part_is_scored_only_on_request(vqa):
    annotations, results = vqa
    write(results, RESULTS[:1])
    scores = score_vqa(results, annotations, allow_missing=True)
    assert scores.values == {"VQA accuracy": 100}
    (note,) = scores.notes
    assert note.startswith("only 1 of 3 have a result")


def test_invalid_annotations_raise(vqa):
    annotations, results = vqa
    write(annotations, {"annotations": [*ANNOTATIONS[:2], annotation(12, ["2"] * 9)]})
    with pytest.raises(ValueError, match=r"question 12: 9 answers.* those of 10"):
        score_vqa(results, annotations)
    write(annotations, {"questions": []})
    with pytest.raises(ValueError, match="no 'annotations'"):
        score_vqa(results, annotations)
    annotations.write_text('{"annotations": [\n')
    with pytest.raises(ValueError, match="line 2: no JSON"):
        score_vqa(results, annotations)

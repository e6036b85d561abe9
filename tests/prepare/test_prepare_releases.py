"""Small releases in the published shape, and their rows."""

from __future__ import annotations

import base64
import json

import pytest
from helpers import prepare_samples as samples
from helpers.prepare_samples import manifest, prepare, problems, rows

from ofa_exit.data.answers import parse_answers
from ofa_exit.prepare import answers, visdial


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def texts(path, image_column=-1):
    """Return the rows of a file without their images."""
    stripped = rows(path)
    for row in stripped:
        row.pop(image_column)
    return stripped


def test_coco(root, out, capsys):
    samples.coco(root)
    assert prepare("coco", root, out) == 0
    assert texts(out / "train.tsv") == [
        ["700", "9", "a dog.", ""],
        ["701", "9", "two dogs & a cat.", ""],
        ["702", "42", "a cat & a dog", ""],
    ]
    assert texts(out / "train_stage2.tsv") == [
        ["9", "9", "a dog.&&two dogs & a cat.", ""],
        ["42", "42", "a cat & a dog", ""],
    ]
    assert texts(out / "valid.tsv") == [["73", "73", "a bird&&the bird sings.", ""]]
    assert texts(out / "test.tsv") == [["74", "74", "a fish", ""]]
    original = (root / "train2014" / "COCO_train2014_000000000009.jpg").read_bytes()
    for row in rows(out / "train.tsv")[:2]:
        assert base64.urlsafe_b64decode(row[-1]) == original
    warned = capsys.readouterr().err
    assert "train.tsv is not the published split: 3 rows, published 566,747" in warned


def test_an_unknown_karpathy_split_is_a_problem(root, out, capsys):
    source = samples.coco(root)
    content = json.loads(source.read_text())
    content["images"][1]["split"] = "trian"
    source.write_text(json.dumps(content))
    assert prepare("coco", root, out) == 2
    assert "dataset_coco.json, 42: split 'trian', none of" in capsys.readouterr().err


def test_nocaps_and_its_domains(root, out):
    samples.nocaps(root)
    assert prepare("nocaps", root, out) == 0
    assert [row[0] for row in rows(out / "valid.tsv")] == ["0", "1", "2", "3"]
    for domain, ids in (("in", ["0"]), ("near", ["1", "3"]), ("out", ["2"])):
        found = rows(out / f"valid_{domain}_domain.tsv")
        assert [row[0] for row in found] == ids
    captions = rows(out / "valid_out_domain.tsv")[0][2].split("&&")
    assert captions == [f"Thing 2 seen by {at}." for at in range(10)]


def test_snli_ve(root, out):
    samples.snli_ve(root)
    assert prepare("snli_ve", root, out) == 0
    image = base64.urlsafe_b64encode(
        (root / "flickr30k-images" / "1000092791.jpg").read_bytes()
    ).decode()
    assert rows(out / "valid.tsv")[2] == [
        *["1000092791.jpg#2r1c", "1000092791", image],
        *["The man says 2.", "A man in red.", "contradiction"],
    ]
    assert [len(rows(out / f"{split}.tsv")) for split in ("train", "valid", "test")] == [3, 3, 3]


def test_snli_ve_as_first_released(root, out):
    """The first releases had the key Flikr30kID."""
    samples.snli_ve(root)
    for source in root.glob("*.jsonl"):
        source.write_text(source.read_text().replace("Flickr30K_ID", "Flikr30kID"))
    assert prepare("snli_ve", root, out) == 0
    assert rows(out / "valid.tsv")[0][1] == "1000092791"


@pytest.mark.parametrize(("count", "worth"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_confidence_of_the_challenge(count, worth):
    assert answers.confidence(count) == worth


def test_vqa_training_and_evaluation_rows(root, out):
    samples.vqa(root)
    assert prepare("vqa", root, out, "--answers", 0) == 0
    assert not (out / "answers.txt").exists()
    # 458752 and 9 leave 1 and 0 when divided by 3: answers 1, 2 and 0, 1.
    assert texts(out / "train.tsv") == [
        ["458752000", "458752", "what is it 0?", "1.0|!+yes", ""],
        ["458752001", "458752", "what is it 1?", "0.9|!+net", ""],
        ["458752001", "458752", "what is it 1?", "1.0|!+yes", ""],
        ["9000", "9", "what is it 0?", "1.0|!+net", ""],
        ["9000", "9", "what is it 0?", "0.6|!+netting", ""],
        ["9000", "9", "what is it 0?", "0.6|!+mesh", ""],
        ["9001", "9", "what is it 1?", "1.0|!+yes", ""],
    ]
    (valid,) = rows(out / "valid.tsv")
    assert parse_answers(valid[3]) == [(1.0, one) for one in samples.ANSWERS[0]]
    for split in ("test", "test-dev"):
        assert texts(out / f"{split}.tsv") == [["1000", "1", "what is it 0?", "", ""]]
    assert manifest(out / "train.tsv")["counts"]["found"] == {
        "questions": 4,
        "images": 2,
        "rows": 7,
    }


def test_vqa_candidates_limit_training_alone(root, out, capsys):
    samples.vqa(root)
    # The most common answers: yes, yes, net, yes in training and net in validation.
    options = ["--answers", 1, "--min-occurrences", 2, "--splits", "train", "valid", "trainval"]
    assert prepare("vqa", root, out, *options) == 0
    assert (out / "answers.txt").read_text() == "yes\n"
    assert {row[3] for row in rows(out / "train.tsv")} == {"1.0|!+yes"}
    assert manifest(out / "train.tsv")["left_out"] == {"no answer among the candidates": 1}
    assert manifest(out / "train.tsv")["counts"]["found"]["questions"] == 4
    assert manifest(out / "trainval.tsv")["left_out"] == {"no answer among the candidates": 2}
    assert len(parse_answers(rows(out / "valid.tsv")[0][3])) == 10
    assert "2 answers occur at least 2 times, 1 were asked for" in capsys.readouterr().err


def test_another_candidate_list_is_other_training_data(root, out, capsys):
    samples.vqa(root)
    base = ["vqa", root, out, "--splits", "train", "--min-occurrences", 1]
    assert prepare(*base, "--answers", 1) == 0
    assert prepare(*base, "--answers", 2) == 0
    assert "not from these inputs" in capsys.readouterr().err
    assert {row[3] for row in rows(out / "train.tsv")} == {"1.0|!+yes", "0.9|!+net", "1.0|!+net"}


def damaged_vqa(root):
    """Write train annotations without one question, with nine answers, and with one too many."""
    samples.vqa(root)
    source = root / "v2_mscoco_train2014_annotations.json"
    content = json.loads(source.read_text())
    of = {one["question_id"]: one for one in content["annotations"]}
    of[9000]["answers"].pop()
    of[458752000]["question_id"] = 5
    source.write_text(json.dumps(content))


def test_vqa_annotations_that_do_not_fit_are_problems(root, out, capsys):
    damaged_vqa(root)
    options = ["vqa", root, out, "--splits", "train", "--answers", 0]
    assert prepare(*options) == 2
    message = capsys.readouterr().err
    asked = "v2_OpenEnded_mscoco_train2014_questions.json"
    for line in (
        f"{asked}, 458752000: v2_mscoco_train2014_annotations.json has no such question",
        f"{asked}, 9000: the question has 9 answers, not 10",
        f"v2_mscoco_train2014_annotations.json, 5: {asked} does not ask it",
    ):
        assert line in message
    assert not (out / "train.tsv").exists()
    assert prepare(*options, "--skip-missing") == 0
    assert {row[0] for row in rows(out / "train.tsv")} == {"458752001", "9001"}
    ids = [line.split(": ")[0].split(", ")[1] for line in problems(out / "train.tsv")]
    assert ids == ["458752000", "9000", "5"]


def test_vqa_with_missing_annotations(root, out, capsys):
    """Without the annotations of validation, then with test questions only."""
    samples.vqa(root)
    (root / "v2_mscoco_val2014_annotations.json").unlink()
    assert prepare("vqa", root, out, "--min-occurrences", 1) == 0
    message = capsys.readouterr().err
    assert "valid: left out, v2_mscoco_val2014_annotations.json" in message
    assert "answers.txt: v2_mscoco_val2014_annotations.json is missing" in message
    assert (out / "answers.txt").read_text() == "yes\nnet\n"
    assert {path.stem for path in out.glob("*.tsv")} == {"train", "test-dev", "test"}
    assert list(manifest(out / "answers.txt")["inputs"]["sources"]) == [
        "v2_mscoco_train2014_annotations.json"
    ]
    for path in root.glob("*train2014*.json"):
        path.unlink()
    assert prepare("vqa", root, out / "test") == 0
    assert {path.stem for path in (out / "test").glob("*.tsv")} == {"test-dev", "test"}
    assert not (out / "test" / "answers.txt").exists()
    assert prepare("vqa", root, out / "test", "--splits", "valid") == 2
    assert "valid needs v2_mscoco_val2014_annotations.json" in capsys.readouterr().err


def test_vizwiz_candidates_of_training_only(root, out, capsys):
    samples.vizwiz(root)
    (root / "Annotations" / "val.json").unlink()
    assert prepare("vizwiz", root, out, "--answers", 5) == 0
    assert "answers.txt: Annotations/val.json is missing" in capsys.readouterr().err
    assert (out / "answers.txt").read_text() == "unanswerable\n"


def test_okvqa(root, out):
    samples.okvqa(root)
    assert prepare("okvqa", root, out) == 0
    hair = "what is the hairstyle?"
    assert texts(out / "train.tsv") == [["516065", "51606", hair, "1.0|!+pony tail", ""]]
    joined = "&&".join(["1.0|!+pony tail"] * 10)
    assert texts(out / "valid.tsv") == [["2971475", "297147", hair, joined, ""]]


def test_gqa(root, out):
    samples.gqa(root)
    assert prepare("gqa", root, out) == 0
    for at, (split, field) in enumerate(
        (("train", "1.0|!+yes"), ("valid", "1.0|!+yes"), ("testdev", "1.0|!+yes"), ("test", ""))
    ):
        expected = [f"0293015{at}", f"n16131{at}", "is the sky dark?", field, ""]
        assert texts(out / f"{split}.tsv") == [expected]


def test_vizwiz(root, out):
    samples.vizwiz(root)
    assert prepare("vizwiz", root, out, "--answers", 5) == 0
    assert (out / "answers.txt").read_text() == "unanswerable\n"
    assert [row[3] for row in rows(out / "train.tsv")] == ["1.0|!+unanswerable"]
    (valid,) = rows(out / "valid.tsv")
    assert valid[:2] == ["VizWiz_val_00000000.jpg", "VizWiz_val_00000000"]
    given = ["basil leaves", "basil leaves", "basil", "Basil", ""] + ["unanswerable"] * 5
    assert [answer for _, answer in parse_answers(valid[3])] == given
    assert rows(out / "test.tsv")[0][3] == ""
    assert prepare("vizwiz", root, out) == 0
    kept = [row[3] for row in rows(out / "train.tsv")]
    assert kept == ["0.6|!+basil leaves", "0.6|!+basil", "1.0|!+unanswerable"]


def named(path):
    return [dict(zip(visdial.COLUMNS, row, strict=True)) for row in rows(path)]


def test_visdial(root, out):
    samples.visdial(root)
    assert prepare("visdial", root, out) == 0
    train, valid, test = (named(out / f"{split}.tsv") for split in ("train", "valid", "test"))
    assert [row["question_id"] for row in train] == [f"378466_{at}" for at in range(1, 11)]
    assert [row["answers"] for row in train] == [f"answer {2 * at}" for at in range(10)]
    assert {row["gt_index"] for row in train} == {"0"}
    assert train[0]["history"] == "a man with a dog ."
    assert train[2]["history"] == "a man with a dog . is it 0? answer 0. is it 1? answer 2."
    assert train[2]["question"] == "is it 2?"
    assert [len(row["answers"].split("&&")) for row in valid] == [100] * 10
    for at, row in enumerate(valid):
        assert row["answers"].split("&&")[int(row["gt_index"])] == f"answer {2 * at}"
    dense = [row["relevance"] for row in valid]
    assert [bool(field) for field in dense] == [at == 4 for at in range(10)]
    values = [float(value) for value in dense[4].split("&&")]
    assert len(values) == 100 and values[4] == 1 and values[7] == 0.4 and sum(values) == 1.4
    (last,) = test
    assert last["question_id"] == "1_3" and last["gt_index"] == ""
    assert last["history"].endswith("is it 1? answer 2.")
    assert len(last["answers"].split("&&")) == 100


def test_visdial_without_dense_annotations(root, out, capsys):
    samples.visdial(root)
    (root / "visdial_1.0_val_dense_annotations.json").unlink()
    assert prepare("visdial", root, out, "--splits", "valid") == 0
    assert "visdial_1.0_val_dense_annotations.json is missing" in capsys.readouterr().err
    assert {row["relevance"] for row in named(out / "valid.tsv")} == {""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["answer_options"].pop(), "a round has 99 candidates, not 100"),
        (lambda one: one.update(gt_index=100), "gt_index 100 is none of the 100 candidates"),
        (lambda one: one.update(question=12), "question 12 is none of the 12 texts"),
        (lambda one: one.pop("answer_options"), "the record has no 'answer_options'"),
    ],
)
def test_malformed_rounds_are_problems(root, out, capsys, change, message):
    source = damaged_visdial(root, "val", lambda data: change(data["dialogs"][0]["dialog"][3]))
    assert prepare("visdial", root, out, "--splits", "valid") == 2
    assert f"{source.name}, 284_4: {message}" in capsys.readouterr().err


def damaged_visdial(root, split, change):
    """Write the release with ``change`` applied to a split. Return its file."""
    samples.visdial(root)
    source = root / f"visdial_1.0_{split}.json"
    content = json.loads(source.read_text())
    change(content["data"])
    source.write_text(json.dumps(content))
    return source


def rounds(path):
    return [row["question_id"].partition("_")[2] for row in named(path)]


def test_an_empty_candidate_drops_its_rounds(root, out, capsys):
    """Answer 100 is a candidate from the second round on, and never the true answer."""
    source = damaged_visdial(root, "val", lambda data: data["answers"].__setitem__(100, " "))
    assert prepare("visdial", root, out, "--splits", "valid") == 2
    message = capsys.readouterr().err
    assert f"{source.name}, 284_2: answer_options 100 is empty or not text" in message
    assert "9 records cannot become rows" in message and "no such round" not in message
    assert prepare("visdial", root, out, "--splits", "valid", "--skip-missing") == 0
    assert rounds(out / "valid.tsv") == ["1"]


@pytest.mark.parametrize(
    ("kind", "index", "message"),
    [
        ("questions", 3, "question 3 is empty or not text"),
        ("answers", 6, "answer 6 is empty or not text"),
    ],
)
def test_an_empty_text_drops_its_round_and_later_ones(root, out, kind, index, message):
    source = damaged_visdial(root, "train", lambda data: data[kind].__setitem__(index, ""))
    assert prepare("visdial", root, out, "--splits", "train", "--skip-missing") == 0
    assert rounds(out / "train.tsv") == ["1", "2", "3"]
    assert problems(out / "train.tsv") == [
        f"{source.name}, 378466_4: {message}",
        *(
            f"{source.name}, 378466_{number}: its history is incomplete: round 4: {message}"
            for number in range(5, 11)
        ),
    ]


@pytest.mark.parametrize("caption", ["", None, 5])
def test_an_empty_caption_drops_its_dialogue(root, out, capsys, caption):
    source = damaged_visdial(root, "test", lambda data: data["dialogs"][0].update(caption=caption))
    assert prepare("visdial", root, out, "--splits", "test") == 2
    assert f"{source.name}, 1: caption is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.update(gt_relevance=[0.0] * 100), "284_5: gt_relevance is 0 for all"),
        (lambda one: one["gt_relevance"].pop(), "284_5: gt_relevance is not 100 numbers"),
        (lambda one: one.pop("gt_relevance"), "284_5: the record has no 'gt_relevance'"),
        (lambda one: one.pop("round_id"), "entry 0: the record has no 'round_id'"),
        (lambda one: one.update(round_id=11), "284_11: round not found"),
    ],
)
def test_invalid_relevances_are_problems_and_left_out(root, out, capsys, change, message):
    samples.visdial(root)
    dense = root / "visdial_1.0_val_dense_annotations.json"
    content = json.loads(dense.read_text())
    change(content[0])
    dense.write_text(json.dumps(content))
    assert prepare("visdial", root, out, "--splits", "valid") == 2
    assert f"{dense.name}, {message}" in capsys.readouterr().err
    assert prepare("visdial", root, out, "--splits", "valid", "--skip-missing") == 0
    assert rounds(out / "valid.tsv") == [str(number) for number in range(1, 11)]
    assert {row["relevance"] for row in named(out / "valid.tsv")} == {""}

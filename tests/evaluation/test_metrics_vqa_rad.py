"""Scores of VQA-RAD and RSICD from result files and the published annotations."""

import json

import pytest
from helpers import prepare_samples as samples

from ofa_exit.evaluation.metrics.caption_results import score_coco
from ofa_exit.evaluation.metrics.captions import score_captions
from ofa_exit.evaluation.metrics.vqa_rad import score_vqa_rad


def results(path, key: str, value: str, answers: dict):
    entries = [{key: name, value: text} for name, text in answers.items()]
    return samples.write_json(path / "results.json", entries)


def test_closed_open_and_all_questions(tmp_path):
    source = samples.vqa_rad(tmp_path / "root")
    content = json.loads(source.read_text())
    more = {**content[-1], "qid": "9", "answer": 12, "answer_type": " OPEN "}
    content += [more, {**more, "qid": 10, "answer": "Left  lobe"}]
    source.write_text(json.dumps(content))
    given = {7: " NO", 8: "coronal", 9: "12", 10: "left lobe"}
    scores = score_vqa_rad(results(tmp_path, "question_id", "answer", given), source)
    assert scores.values == pytest.approx({"accuracy": 75, "closed": 100, "open": 200 / 3})
    assert scores.counted == 4
    assert scores.breakdowns["answer type"]["open"] == (pytest.approx(200 / 3), 3)
    assert scores.breakdowns["phrase type"]["test_freeform"] == (100, 1)
    partial = results(tmp_path, "question_id", "answer", {7: "no"})
    with pytest.raises(ValueError, match=r"no result for 3 of 4 of .*Public.json: question 8, 9"):
        score_vqa_rad(partial, source)
    assert score_vqa_rad(partial, source, allow_missing=True).values == {
        "accuracy": 100,
        "closed": 100,
    }


def test_training_questions_and_other_files_are_rejected(tmp_path):
    source = samples.vqa_rad(tmp_path / "root")
    with pytest.raises(ValueError, match="1 of 1 results are for no question"):
        score_vqa_rad(results(tmp_path, "question_id", "answer", {0: "yes"}), source)
    other = samples.write_json(tmp_path / "other.json", [{"qid": 1, "answer": "yes"}])
    with pytest.raises(ValueError, match=r"other\.json: no question has a phrase_type that starts"):
        score_vqa_rad(tmp_path / "results.json", other)


def test_rsicd_is_scored_like_cocos_file(tmp_path):
    """Images are known by imgid. A caption without words is no reference, as in test.tsv."""
    source = samples.rsicd(tmp_path / "root")
    given = results(tmp_path, "image_id", "caption", {3: "a bridge and a road"})
    references = ["a bridge .", "a bridge .", "a road .", "a river ."]
    expected = score_captions(["a bridge and a road"], [references], "plain").values
    assert score_coco(given, source, tokenizer="plain").values == pytest.approx(expected)
    content = json.loads(source.read_text())
    content["images"][3]["sentences"] = content["images"][3]["sentences"][2:3]
    source.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"dataset_rsicd\.json, image 3: no caption has words"):
        score_coco(given, source, tokenizer="plain")

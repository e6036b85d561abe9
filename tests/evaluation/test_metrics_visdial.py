"""VisDial's metrics, worked by hand from the starter code, and its files."""

import json
import math

import pytest
import torch

from ofa_exit.evaluation.metrics.visdial import VisDialMetrics, ndcg, score_visdial


def test_ndcg_of_a_worked_example():
    """By hand, from the definition.

    Five answers, relevances 1, 1, 1, 0.5, 0 (k = 4), ranked 3, 5, 1, 2, 4: the four best ranked
    have 1, 0.5, 1, 0.
    """
    gain = 1 / math.log2(2) + 0.5 / math.log2(3) + 1 / math.log2(4) + 0 / math.log2(5)
    best = 1 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4) + 0.5 / math.log2(5)
    assert ndcg([3, 5, 1, 2, 4], [1, 1, 1, 0.5, 0]) == pytest.approx(gain / best)
    assert ndcg([1, 2, 3, 4, 5], [1, 1, 1, 0.5, 0]) == pytest.approx(1)
    # k = 1: what is ranked second counts for nothing.
    assert ndcg([1, 2, 3], [0, 1, 0]) == 0
    with pytest.raises(ValueError, match="no candidate has a relevance above 0"):
        ndcg([1, 2], [0, 0])


def starter_code_ndcg(ranks, relevance):
    """NDCG in the steps of the starter code, on tensors."""
    relevance = torch.tensor(relevance)
    k = int((relevance != 0).sum())

    def dcg(order):
        return (relevance[order[:k]] / torch.log2(torch.arange(k) + 2.0)).sum()

    best = relevance.sort(descending=True)[1]
    return float(dcg(torch.tensor(ranks).sort()[1]) / dcg(best))


def test_ndcg_equals_the_starter_codes():
    for _ in range(20):
        ranks = (torch.randperm(100) + 1).tolist()
        relevance = (torch.randint(-6, 6, (100,)).clamp(min=0) / 5).tolist()
        assert ndcg(ranks, relevance) == pytest.approx(starter_code_ndcg(ranks, relevance), 1e-5)


def test_metrics_of_rounds():
    metrics = VisDialMetrics()
    identity = list(range(1, 101))
    for true_rank in (1, 2, 10, 100):
        metrics.add(identity, true_rank - 1)
    assert metrics.values() == {
        "MRR": pytest.approx(100 * (1 + 1 / 2 + 1 / 10 + 1 / 100) / 4),
        "R@1": 25,
        "R@5": 50,
        "R@10": 75,
        "mean rank": 28.25,
    }
    metrics.add(identity, 0, [0, 1] + [0] * 98)
    metrics.add(identity, 0, [1, 0] + [0] * 98)
    assert metrics.values()["NDCG"] == 50  # over the two rounds with relevances
    assert metrics.scores().notes == ["NDCG over 2 rounds"]


@pytest.mark.parametrize(
    ("round_", "message"),
    [
        (([1, 1, 3], 0, None), "not a permutation of 1 to 3"),
        (([0, 1, 2], 0, None), "not a permutation of 1 to 3"),
        (([], 0, None), "not a permutation"),
        (([1, 2], 2, None), "the true answer 2 is none of 2"),
        (([1, 2], -1, None), "the true answer -1"),
        (([1, 2], 0, [1.0]), "1 relevances for 2"),
        (([1, 2], 0, [0, 0]), "relevance above 0"),
        (([1, 2], 0, [math.nan, 1]), "not a finite number"),
        (([1, 2], 0, [-1, 1]), "negative"),
    ],
)
def test_invalid_rounds_raise_and_are_not_counted(round_, message):
    metrics = VisDialMetrics()
    with pytest.raises(ValueError, match=f"image 5: .*{message}"):
        metrics.add(*round_, where="image 5")
    assert len(metrics) == 0


CANDIDATES = 4


def dialog(image, true_indices):
    turns = [
        {"question": 0, "answer": 0, "gt_index": at, "answer_options": list(range(CANDIDATES))}
        for at in true_indices
    ]
    return {"image_id": image, "caption": "a", "dialog": turns}


@pytest.fixture
def files(tmp_path):
    def make(results, dense=None, dialogs=None):
        dialogs = dialogs or [dialog(7, [0, 3]), dialog(9, [1, 1])]
        contents = {
            "results": results,
            "annotations": {"data": {"dialogs": dialogs, "questions": [], "answers": []}},
            "dense": dense,
        }
        for name, content in contents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        paths = [tmp_path / f"{name}.json" for name in contents]
        return paths if dense is not None else paths[:2]

    return make


def result(image, turn, ranks):
    return {"image_id": image, "round_id": turn, "ranks": ranks}


RESULTS = [
    result(9, 2, [4, 3, 2, 1]),  # true 1: rank 3
    result(7, 1, [1, 2, 3, 4]),  # true 0: rank 1
    result(7, 2, [1, 2, 3, 4]),  # true 3: rank 4
    result(9, 1, [2, 1, 3, 4]),  # true 1: rank 1
]


def test_files(files):
    scores = score_visdial(*files(RESULTS))
    assert scores.values == {
        "MRR": pytest.approx(100 * (1 / 3 + 1 + 1 / 4 + 1) / 4),
        "R@1": 50,
        "R@5": 100,
        "R@10": 100,
        "mean rank": 2.25,
    }
    assert scores.notes == ["NDCG missing", "give --dense for NDCG"]
    dense = [{"image_id": 9, "round_id": 2, "gt_relevance": [0, 0, 1, 0.5]}]
    scores = score_visdial(*files(RESULTS, dense))
    # k = 2: ranked first has 0.5, second 1.
    expected = (0.5 + 1 / math.log2(3)) / (1 + 0.5 / math.log2(3))
    assert scores.values["NDCG"] == pytest.approx(100 * expected)
    assert next(iter(scores.values)) == "NDCG"
    dense[0]["relevance"] = dense[0].pop("gt_relevance")  # as the train file has it
    assert score_visdial(*files(RESULTS, dense)).values == scores.values


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (RESULTS[:3], r"no result for 1 of 4 .* image_id round_id 9 1"),
        ([*RESULTS, RESULTS[0]], r"entry 5: image_id round_id 9 2 comes twice"),
        ([*RESULTS, result(9, 3, [1, 2, 3, 4])], r"1 of 5 results .* 9 3"),
        ([*RESULTS[:3], result(9, 1, [1, 2, 3])], r"9 1: 3 ranks for 4 candidates"),
        ([*RESULTS[:3], result(9, 1, [1, 2, 3, 3])], r"9 1: .* not a permutation"),
        ([*RESULTS[:3], result(9, 1, [1, 2, 3, 4.0])], r"9 1: .* integers"),
        ([*RESULTS[:3], result(9, 1, "1234")], r"9 1: 'ranks' is str"),
    ],
)
def test_invalid_results_name_file_and_round(files, results, message):
    given = files(results)
    with pytest.raises(ValueError, match=message) as raised:
        score_visdial(*given)
    assert str(given[0]) in str(raised.value)


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ({"image_id": 8, "round_id": 1, "gt_relevance": [1] * 4}, "8 1: .* no such round"),
        ({"image_id": 9, "round_id": 1, "gt_relevance": [1] * 3}, "9 1: 3 relevances, 4"),
        ({"image_id": 9, "round_id": 1, "gt_relevance": [0] * 4}, "9 1: .*above 0"),
        ({"image_id": 9, "round_id": 1}, "9 1: no 'gt_relevance'"),
    ],
)
def test_invalid_relevances_raise(files, dense, message):
    with pytest.raises(ValueError, match=message):
        score_visdial(*files(RESULTS, [dense]))


def test_the_test_split_cannot_be_scored(files):
    open_round = dialog(7, [0])
    del open_round["dialog"][0]["gt_index"]
    with pytest.raises(ValueError, match=r"image 7, round 1: no 'gt_index'.*not published"):
        score_visdial(*files(RESULTS, dialogs=[open_round]))

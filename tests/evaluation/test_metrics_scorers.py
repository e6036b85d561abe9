"""The benchmarks' scorers as fairseq builds and drives them."""

import math

import pytest
from fairseq import options, scoring
from fairseq.data import Dictionary
from omegaconf import OmegaConf

import ofa_exit.plugin  # noqa: F401

NAMES = ("vqa_accuracy", "vizwiz_accuracy", "gqa_accuracy", "visdial")


def build(name):
    return scoring.build_scorer(OmegaConf.create({"_name": name}), Dictionary())


@pytest.mark.parametrize("name", NAMES)
def test_names_and_empty_runs(name):
    parser = options.get_generation_parser()
    args = options.parse_args_and_arch(parser, ["data", "--path", "x", "--scoring", name])
    assert args.scoring == name
    scorer = build(name)
    assert "nothing was scored" in scorer.result_string()
    with pytest.raises(ValueError, match="nothing was scored"):
        scorer.values()


def test_vqa_accuracy():
    scorer = build("vqa_accuracy")
    scorer.add_string(" && ".join(["red"] * 2 + ["blue"] * 8), "Red.")  # 2 matches: 0.6
    assert scorer.score() == pytest.approx(60)
    # As OFA's files have them, and with an empty one, which counts as an answer.
    scorer.add_string("&&".join(["1.0|!+red"] * 9 + ["1.0|!+"]), "red")
    assert scorer.values() == {"accuracy": pytest.approx(80)}
    assert scorer.result_string() == "accuracy = 80.00 (VQA accuracy of 2 questions)"
    with pytest.raises(ValueError, match=r"sentence 3 of the generation: 2 answers.* of 10"):
        scorer.add_string("1.0|!+red&&0.3|!+blue", "red")
    # An annotator's word that the dictionary lacks is equal to no prediction.
    scorer.add_string(" && ".join(["<<unk>>"] * 10), "<<unk>>")
    assert scorer.score() == pytest.approx(160 / 3)


def test_vizwiz_accuracy_keeps_the_answers():
    scorers = build("vizwiz_accuracy"), build("vqa_accuracy")
    for scorer in scorers:
        scorer.add_string(" && ".join(["Red"] * 9 + ["blue"]), "red")
    assert [scorer.score() for scorer in scorers] == [0, 100]


def test_gqa_accuracy():
    scorer = build("gqa_accuracy")
    for reference, prediction in [("red", "red"), ("red", "Red"), ("1.0|!+no", "no")]:
        scorer.add_string(reference, prediction)
    assert scorer.result_string() == "accuracy = 66.67 (GQA accuracy of 3 questions)"
    for reference in ("red && blue", ""):
        with pytest.raises(ValueError, match=r"sentence 4 .* has the answers"):
            scorer.add_string(reference, "red")


def test_visdial():
    scorer = build("visdial")
    scorer.add_string("2", "2 0 1")
    assert scorer.values()["MRR"] == scorer.score() == 100
    scorer.add_string("0 && 0 && 0.5 && 1", "1 0 2")  # true: rank 2; k = 2: 0.5 and 0
    expected = 100 * 0.5 / (1 + 0.5 / math.log2(3))
    assert scorer.score() == scorer.values()["NDCG"] == pytest.approx(expected)
    assert scorer.values()["MRR"] == 75
    assert f"NDCG = {expected:.2f} MRR = 75.00 R@1 = 50.00" in scorer.result_string()
    for reference, prediction in [("0", "0 0"), ("0", "a dog"), ("", "0 1"), ("2", "0 1")]:
        with pytest.raises(ValueError, match=r"sentence 3 of the generation"):
            scorer.add_string(reference, prediction)
    assert "2 rounds" in scorer.result_string()

"""The scorers as fairseq builds and drives them."""

import pytest
from fairseq import options, scoring
from fairseq.data import Dictionary
from omegaconf import OmegaConf

import ofa_exit.plugin.scorers.captions as scorers
from ofa_exit.evaluation.metrics import captions, java
from ofa_exit.plugin.scorers import vqa


def build(name, **config):
    return scoring.build_scorer(OmegaConf.create({"_name": name, **config}), Dictionary())


def test_names_are_registered_once():
    assert scoring.SCORER_REGISTRY["coco_caption"] is scorers.CocoCaptionScorer
    assert scoring.SCORER_REGISTRY["accuracy"] is vqa.AccuracyScorer
    assert scoring.SCORER_REGISTRY["sacrebleu"].__module__.startswith("fairseq.")


def test_flags_and_help():
    parsers = []

    def parse(*flags):
        parsers.append(options.get_generation_parser())
        return options.parse_args_and_arch(parsers[-1], ["data", "--path", "x", *flags])

    args = parse("--scoring", "coco_caption", "--coco-tokenizer", "plain")
    assert str(args.coco_tokenizer) == "plain"
    assert str(parse("--scoring", "coco_caption").coco_tokenizer) == "auto"
    assert parse("--scoring", "accuracy", "--accuracy-ignore-case").accuracy_ignore_case
    with pytest.raises(SystemExit):
        parse("--scoring", "coco_caption", "--coco-tokenizer", "penn")
    assert "without Java" in " ".join(parsers[0].format_help().split())


def test_accuracy():
    scorer = build("accuracy")
    for reference, prediction in [("yes", "yes"), ("no", "yes"), ("no && maybe", "maybe")]:
        scorer.add_string(reference, prediction)
    assert scorer.score() == pytest.approx(200 / 3)
    assert scorer.result_string() == "accuracy = 66.67 (2 of 3)"
    scorer.add_string("Yes", "yes")
    assert scorer.result_string() == "accuracy = 50.00 (2 of 4)"
    relaxed = build("accuracy", accuracy_ignore_case=True)
    relaxed.add_string("Yes", "yes")
    assert relaxed.score() == 100


def test_captions_are_scored_against_all_references(caplog):
    scorer = build("coco_caption", coco_tokenizer="plain")
    pairs = [("a cat&& a black cat ", "a cat"), ("a dog && ", "a bird")]
    for reference, prediction in pairs:
        scorer.add_string(reference, prediction)
    expected = captions.score_captions(
        ["a cat", "a bird"], [["a cat", "a black cat"], ["a dog"]], "plain"
    )
    line = scorer.result_string()
    assert "BLEU-4 = " in line and line.endswith("(2 captions, plain tokenizer)")
    assert expected.line().startswith(line[:-1])
    assert scorer.score() == expected.values["CIDEr"] > 0
    # What is missing is logged before the line, and once.
    assert scorer.result_string() == line
    assert caplog.messages == ["METEOR and SPICE missing: they need the PTB tokenizer"]


def test_result_follows_what_is_added_and_is_computed_once(monkeypatch):
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return captions.score_captions(*arguments)

    monkeypatch.setattr(scorers, "score_captions", count)
    scorer = build("coco_caption", coco_tokenizer="plain")
    scorer.add_string("a cat", "a cat")
    first = scorer.result_string()
    scorer.score()
    assert len(calls) == 1
    scorer.add_string("a dog", "a dog")
    assert scorer.result_string() != first


def test_unknown_words_of_a_reference_match_nothing():
    scorer = build("accuracy")
    scorer.add_string("<<unk>>", "<unk>")
    scorer.add_string("<<unk>>", "<<unk>>")
    assert scorer.score() == 0
    words = build("coco_caption", coco_tokenizer="plain")
    words.add_string("a <<unk>>", "a <unk>")
    assert "BLEU-1 = 50.00" in words.result_string()


@pytest.mark.parametrize("name", ["accuracy", "coco_caption"])
def test_empty_runs_say_so(name):
    scorer = build(name)
    assert "nothing was scored" in scorer.result_string()
    with pytest.raises(ValueError, match="nothing was scored"):
        scorer.score()
    with pytest.raises(ValueError, match=r"sentence 1 .* empty reference"):
        scorer.add_string(" && ", "a cat")


def test_ptb_tokenizer_without_java_is_rejected_before_anything_is_scored(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(java.JavaError, match="no java command"):
        build("coco_caption", coco_tokenizer="ptb")
    scorer = build("coco_caption")
    scorer.add_string("a cat", "a cat")
    assert scorer.result_string().endswith("(1 captions, plain tokenizer)")
    assert "no PTB tokenizer: no java command" in caplog.text

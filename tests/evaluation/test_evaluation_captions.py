"""Caption metrics: by hand, and against pycocoevalcap's wrappers."""

import contextlib
import io
import math

import pytest
from helpers.caption_samples import PREDICTIONS, REFERENCES, by_library

from ofa_exit.evaluation.metrics.accuracy import is_correct
from ofa_exit.evaluation.metrics.captions import (
    bleu_from_statistics,
    bleu_statistics,
    plain_tokenize,
    score_captions,
)
from ofa_exit.evaluation.metrics.cider_d import CiderD


def test_plain_tokenizer():
    assert plain_tokenize("A man’s DOG: don't run, snow-covered (3)!") == (
        "a man 's dog do n't run snow-covered 3"
    )
    assert plain_tokenize(" ... !") == ""


def test_bleu_by_hand():
    sums = bleu_statistics("the cat the on mat", ["the cat sat on the mat"])
    # "the" may count twice, as it does in the reference; of the pairs only "the cat" matches.
    assert sums == [5, 1, 0, 0, 5, 4, 3, 2, 5, 6]
    brevity = math.exp(1 - 6 / 5)
    expected = [100 * brevity, 100 * brevity * math.sqrt(1 / 4), 0, 0]
    assert bleu_from_statistics(sums) == pytest.approx(expected, abs=1e-2)


def test_bleu_takes_the_closest_reference_and_the_shorter_of_two():
    assert bleu_statistics("a b c", ["a b c d e", "a b"])[-2:] == [3, 2]
    assert bleu_statistics("a b c", ["a b c d", "a b"])[-2:] == [3, 2]


def test_summed_statistics_are_the_corpus_values():
    scores = score_captions(PREDICTIONS, REFERENCES, "plain")
    expected, each = by_library(PREDICTIONS, REFERENCES, plain_tokenize)
    assert list(scores.values) == ["CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    assert scores.values == pytest.approx(expected)
    assert expected["CIDEr"] > 10

    # Two workers, samples in another order: BLEU adds up, CIDEr averages.
    pairs = list(zip(PREDICTIONS, REFERENCES, strict=True))
    workers = [pairs[3:0:-2], pairs[0:3:2]]
    counts = [bleu_statistics(*pair) for worker in workers for pair in worker]
    sums = [sum(column) for column in zip(*counts, strict=True)]
    assert bleu_from_statistics(sums) == pytest.approx(
        [scores.values[f"BLEU-{n}"] for n in range(1, 5)]
    )
    cider = CiderD.of_split(REFERENCES)
    totals = [sum(cider.score(*pair) for pair in worker) for worker in workers]
    assert sum(totals) / len(pairs) == pytest.approx(scores.values["CIDEr"])
    assert cider.score(*pairs[2]) == pytest.approx(100 * each[2])


def test_cider_of_one_sample_by_hand():
    # Two documents. "a" is in both (idf ln 2 - ln 2 = 0), "cat", "a cat" and "dog" in one (ln 2).
    cider = CiderD.of_split([["a cat"], ["a dog"]])
    # Equal to its reference: 1 for words, 1 for pairs, nothing for triples and quadruples.
    assert cider.score("a cat", ["a cat"]) == pytest.approx(100 * 10 * (1 + 1 + 0 + 0) / 4)
    # "cat" alone: words agree fully, no pairs; one pair less than the reference costs exp(-1/72).
    assert cider.score("cat", ["a cat"]) == pytest.approx(1000 / 4 * math.exp(-1 / 72))
    assert cider.score("a dog", ["a cat"]) == 0


def test_metrics_print_nothing():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        score_captions(PREDICTIONS, REFERENCES, "plain")
    assert printed.getvalue() == ""


def test_answers():
    assert is_correct(" yes ", ["no", "yes"])
    assert is_correct("light  blue", ["light blue"])
    assert not is_correct("Yes", ["yes"])
    assert is_correct("Yes", ["yES"], ignore_case=True)
    assert not is_correct("", ["yes"])

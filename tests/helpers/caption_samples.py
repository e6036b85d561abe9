"""Captions of every kind, and their scores from pycocoevalcap's classes."""

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

PREDICTIONS = ["A man's dog isn't here!", "", "a cat sits on a mat", "café (red) Côte"]
REFERENCES = [
    ["the dog of the man is gone", "a dog is here"],
    ["something odd", "..."],
    ["a cat on a mat", "the cat sat on the mat"],
    ["flag: Côte", "a café"],
]


def by_library(predictions, references, tokenize):
    """The same scores from pycocoevalcap's classes."""
    truth = {i: [tokenize(ref) for ref in refs] for i, refs in enumerate(references)}
    results = {i: [tokenize(prediction)] for i, prediction in enumerate(predictions)}
    bleu, _ = Bleu(4).compute_score(truth, results, verbose=0)
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu, start=1)}
    scores["CIDEr"], each = Cider().compute_score(truth, results)
    scores["ROUGE-L"], _ = Rouge().compute_score(truth, results)
    return {name: 100 * value for name, value in scores.items()}, each

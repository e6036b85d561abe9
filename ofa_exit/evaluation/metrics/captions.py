"""Caption metrics of a set, and BLEU statistics that add up over batches.

The arithmetic is that of pycocoevalcap, the code behind the COCO caption server. All values are
multiplied by 100, as in papers.
"""

import contextlib
import io
import re
from collections.abc import Callable, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from ofa_exit.evaluation.metrics import java
from ofa_exit.evaluation.metrics.results import Scores
from ofa_exit.evaluation.metrics.spice import spice

TOKENIZERS = ("auto", "ptb", "plain")
MAX_ORDER = 4
# The splits of the PTB tokenizer that occur in captions: don't = do n't, man's = man 's.
_WORD = re.compile(r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:-\w+)*", re.IGNORECASE)


def plain_tokenize(sentence: str) -> str:
    """Return lower-cased words without punctuation, joined by spaces: nearly PTB, but no Java."""
    return " ".join(_WORD.findall(sentence.replace("’", "'").lower()))


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str = "auto",
    spice_jars: str | None = None,
) -> Scores:
    """Return all caption metrics of a set, one prediction and one or more references per sample.

    BLEU uses the closest reference length. CIDEr is pycocoevalcap's variant, the CIDEr-D of
    Vedantam et al. 2015 (clipped counts, Gaussian length penalty with sigma 6), with the set's own
    document frequencies.

    Args:
        tokenizer: "ptb" is the PTB tokenizer, which needs Java. "plain" starts no Java and omits
            METEOR and SPICE. "auto" is "ptb" if Java runs and otherwise "plain", with a note.
        spice_jars: folder of SPICE's language models, see `find_models`.

    Returns:
        The scores, with notes on the tokenizer and on missing metrics.
    Raises:
        java.JavaError: "ptb" without Java.
    """
    notes: list[str] = []
    hypotheses, refs_of, used = _tokenize(predictions, references, tokenizer, notes)
    notes.insert(0, f"{'PTB' if used == 'ptb' else 'plain'} tokenizer")

    ground_truth = dict(enumerate(refs_of))
    results = {number: [hypothesis] for number, hypothesis in enumerate(hypotheses)}
    cider = CiderScorer()
    for hypothesis, refs in zip(hypotheses, refs_of, strict=True):
        cider += (hypothesis, refs)
    with contextlib.redirect_stdout(io.StringIO()):
        values = {"CIDEr": 100 * float(cider.compute_score()[0])}
        values["ROUGE-L"] = 100 * float(Rouge().compute_score(ground_truth, results)[0])
    sums = np.sum([_bleu_counts(*pair) for pair in zip(hypotheses, refs_of, strict=True)], axis=0)
    for order, bleu in enumerate(bleu_from_statistics(sums.tolist()), start=1):
        values[f"BLEU-{order}"] = bleu
    if used == "plain":
        notes.append("METEOR and SPICE missing: they need the PTB tokenizer")
    else:
        _add_metric(values, notes, "METEOR", lambda: java.meteor(hypotheses, refs_of))
        _add_metric(values, notes, "SPICE", lambda: spice(hypotheses, refs_of, spice_jars))
    order_printed = ("CIDEr", *(f"BLEU-{n}" for n in range(1, 5)), "METEOR", "ROUGE-L", "SPICE")
    values = {name: values[name] for name in order_printed if name in values}
    return Scores(values, len(hypotheses), "captions", notes=notes)


def bleu_statistics(hypothesis: str, references: Sequence[str]) -> list[int]:
    """Return the ten counts that BLEU sums over samples, for `bleu_from_statistics`.

    They are [correct 1-grams … 4-grams, all 1-grams … 4-grams, words, words of the closest
    reference], with the words of `plain_tokenize`.
    """
    return _bleu_counts(plain_tokenize(hypothesis), list(map(plain_tokenize, references)))


def bleu_from_statistics(sums: Sequence[int]) -> list[float]:
    """Return BLEU-1 … BLEU-4 ×100 (Papineni et al. 2002) of the summed `bleu_statistics`."""
    scorer = BleuScorer(n=MAX_ORDER)
    correct, guess = list(sums[:MAX_ORDER]), list(sums[MAX_ORDER : 2 * MAX_ORDER])
    length, reference_length = sums[2 * MAX_ORDER :]
    scorer.crefs = [None]
    scorer.ctest = [
        {"correct": correct, "guess": guess, "testlen": length, "reflen": [reference_length]}
    ]
    return [100 * value for value in scorer.compute_score(option="closest")[0]]


def _bleu_counts(hypothesis: str, references: Sequence[str]) -> list[int]:
    """Return the `bleu_statistics` of tokenised captions."""
    counts = BleuScorer(hypothesis, references, n=MAX_ORDER).ctest[0]
    length = counts["testlen"]
    closest = min(counts["reflen"], key=lambda reference: (abs(reference - length), reference))
    return [*counts["correct"], *counts["guess"], length, closest]


def _add_metric(
    values: dict[str, float], notes: list[str], name: str, metric: Callable[[], float]
) -> None:
    """Add a metric computed by Java, or a note why it is missing."""
    try:
        values[name] = 100 * metric()
    except java.JavaError as error:
        notes.append(f"{name} missing: {error}")


def _tokenize(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str,
    notes: list[str],
) -> tuple[list[str], list[list[str]], str]:
    """Return tokenised predictions and references, and the tokenizer used ("ptb" or "plain")."""
    sentences = [*predictions, *(ref for refs in references for ref in refs)]
    tokens, used = None, "plain"
    if tokenizer != "plain":
        try:
            tokens, used = java.ptb_tokenize(sentences), "ptb"
        except java.JavaError as error:
            if tokenizer == "ptb":
                raise
            notes.append(f"no PTB tokenizer: {error}")
    if tokens is None:
        tokens = list(map(plain_tokenize, sentences))
    hypotheses, rest = tokens[: len(predictions)], iter(tokens[len(predictions) :])
    return hypotheses, [[next(rest) for _ in refs] for refs in references], used

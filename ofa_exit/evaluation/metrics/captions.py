"""Caption metrics of a set, and those two that add up over batches for validation.

The arithmetic is pycocoevalcap's (the code behind the COCO caption server); every number is given
times 100, as papers do.
"""

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from ofa_exit.evaluation.metrics import java

TOKENIZERS = ("auto", "ptb", "plain")
MAX_ORDER = 4
# The PTB tokenizer's splits that occur in captions: don't = do n't, man's = man 's.
_WORD = re.compile(r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:-\w+)*", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionScores:
    """Metrics of a set of captions."""

    values: dict[
        str, float
    ]  # ×100, in the order to print; a metric that could not be had is not in it
    captions: int
    tokenizer: str  # "PTB" or "plain"
    notes: tuple[str, ...]  # what is absent, and why

    def line(self) -> str:
        """All of it in one line."""
        numbers = " ".join(f"{name} = {value:.2f}" for name, value in self.values.items())
        remarks = "; ".join((f"{self.captions} captions, {self.tokenizer} tokenizer", *self.notes))
        return f"{numbers} ({remarks})"


def plain_tokenize(sentence: str) -> str:
    """Words in lower case joined by spaces, without punctuation: nearly PTB's, without Java."""
    return " ".join(_WORD.findall(sentence.replace("’", "'").lower()))


def score_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "auto"
) -> CaptionScores:
    """All caption metrics of a set, one prediction and one or more references a sample.

    tokenizer: "ptb" = the PTB tokenizer, needs Java (java.JavaError where there is none); "plain"
    starts no Java, which leaves METEOR and SPICE out; "auto" = "ptb" where Java runs, otherwise
    "plain", and the notes say so. BLEU takes the closest reference length; CIDEr is the variant
    pycocoevalcap implements (clipped counts, Gaussian length penalty with sigma 6: the CIDEr-D of
    Vedantam et al. 2015), with this set's own document frequencies. Raises ValueError for an empty
    set, an unknown tokenizer, or a sample without references.
    """
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"caption tokenizer {tokenizer!r}: choose one of {', '.join(TOKENIZERS)}")
    if not predictions:
        raise ValueError("no captions to score: the set is empty")
    for number, refs in enumerate(references, start=1):
        if not refs:
            raise ValueError(f"caption {number} has no reference to be compared with")
    notes: list[str] = []
    hypotheses, refs_of, used = _tokenize(predictions, references, tokenizer, notes)

    ids = range(len(hypotheses))
    ground_truth = {number: refs_of[number] for number in ids}
    results = {number: [hypotheses[number]] for number in ids}
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
        notes.append("METEOR and SPICE absent: they go with the PTB tokenizer")
    else:
        _add_metric(values, notes, "METEOR", lambda: java.meteor(hypotheses, refs_of))
        _add_metric(values, notes, "SPICE", lambda: java.spice(hypotheses, refs_of))
    order_printed = ("CIDEr", *(f"BLEU-{n}" for n in range(1, 5)), "METEOR", "ROUGE-L", "SPICE")
    return CaptionScores(
        {name: values[name] for name in order_printed if name in values},
        len(hypotheses),
        "PTB" if used == "ptb" else "plain",
        tuple(notes),
    )


def bleu_statistics(hypothesis: str, references: Sequence[str]) -> list[int]:
    """What BLEU adds up over samples.

    [correct 1-grams … 4-grams, all 1-grams … 4-grams, words, closest reference's words].

    Ten integers, words of `plain_tokenize`; sum them element by element and give the sums to
    `bleu_from_statistics`.
    """
    return _bleu_counts(plain_tokenize(hypothesis), _plain(references))


def bleu_from_statistics(sums: Sequence[int]) -> list[float]:
    """BLEU-1 … BLEU-4 ×100 (Papineni et al. 2002) of the summed `bleu_statistics`."""
    scorer = BleuScorer(n=MAX_ORDER)
    correct, guess = list(sums[:MAX_ORDER]), list(sums[MAX_ORDER : 2 * MAX_ORDER])
    length, reference_length = sums[2 * MAX_ORDER :]
    scorer.crefs = [None]
    scorer.ctest = [
        {"correct": correct, "guess": guess, "testlen": length, "reflen": [reference_length]}
    ]
    return [100 * value for value in scorer.compute_score(option="closest")[0]]


def _bleu_counts(hypothesis: str, references: Sequence[str]) -> list[int]:
    """`bleu_statistics` of captions that are tokenised already."""
    counts = BleuScorer(hypothesis, references, n=MAX_ORDER).ctest[0]
    length = counts["testlen"]
    closest = min(counts["reflen"], key=lambda reference: (abs(reference - length), reference))
    return [*counts["correct"], *counts["guess"], length, closest]


def _add_metric(
    values: dict[str, float], notes: list[str], name: str, metric: Callable[[], float]
) -> None:
    """Adds a metric that Java computes, or says why it is absent; the other metrics stay."""
    try:
        values[name] = 100 * metric()
    except java.JavaError as error:
        notes.append(f"{name} absent: {error}")


def _plain(sentences: Sequence[str]) -> list[str]:
    return [plain_tokenize(sentence) for sentence in sentences]


def _tokenize(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str,
    notes: list[str],
) -> tuple[list[str], list[list[str]], str]:
    """Tokenised predictions and references, and the tokenizer used ("ptb" or "plain")."""
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
        tokens = _plain(sentences)
    hypotheses, rest = tokens[: len(predictions)], iter(tokens[len(predictions) :])
    return hypotheses, [[next(rest) for _ in refs] for refs in references], used

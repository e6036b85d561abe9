"""CIDEr-D of captions by fixed document frequencies: the reward of self-critical training."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from ofa_exit.evaluation.metrics.captions import plain_tokenize

END = "<eos>"
COMMAND = "ofa-exit document-frequencies TRAIN.tsv FILE.npz"

NGram = tuple[str, ...]


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many of ``images`` each n-gram of one to four words occurs in some reference.

    N-grams of a single image are left out: log max(1, df) is 0 for them as for unknown ones.
    """

    counts: Counter[NGram]
    images: int

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> "DocumentFrequencies":
        """Counted over the references of each image. Raises ValueError for fewer than two images:
        the logarithm of their number scales every score."""
        scorer, images = CiderScorer(), 0
        for captions in references:
            scorer.crefs = [cook_refs([words(caption) for caption in captions])]
            scorer.compute_doc_freq()
            images += 1
        if images < 2:
            raise ValueError(f"CIDEr-D needs the references of two images or more, not {images}")
        several = {gram: int(n) for gram, n in scorer.document_frequency.items() if n > 1}
        return cls(Counter(several), images)

    def save(self, stream: IO[bytes]) -> None:
        """Writes an npz file without pickles."""
        grams = sorted(self.counts)
        text = "\n".join(" ".join(gram) for gram in grams).encode()
        np.savez_compressed(
            stream,
            ngrams=np.frombuffer(text, dtype=np.uint8),
            counts=np.array([self.counts[gram] for gram in grams], dtype=np.int64),
            images=np.int64(self.images),
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DocumentFrequencies":
        """Reads what ``save`` wrote. Raises ValueError, with the remedy, for anything else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                text = arrays["ngrams"].tobytes().decode()
                counts, images = arrays["counts"].tolist(), int(arrays["images"])
            grams = [tuple(line.split(" ")) for line in text.split("\n")] if text else []
            if len(grams) != len(counts) or images < 2:
                raise ValueError("its parts do not fit together")
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}: no document frequencies ({error}). Make the file by {COMMAND}"
            ) from error
        return cls(Counter(dict(zip(grams, counts))), images)


class CiderD:
    """Scores captions one by one; the arithmetic is pycocoevalcap's, as for the metric.

    Differs from the metric: the end of a caption counts as a word, so that a caption cut off in
    the middle ("a man on a") does not score like a whole one; and document frequencies are those
    of the training references. Words are ``plain_tokenize``'s: the PTB tokenizer is a Java
    program, far too slow to be asked at every training step.
    """

    def __init__(self, frequencies: DocumentFrequencies) -> None:
        self._scorer = CiderScorer()
        # Asked for what it lacks, a Counter does not grow as the scorer's defaultdict does.
        self._scorer.document_frequency = frequencies.counts
        self._images = frequencies.images

    def scores(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """CIDEr-D x 100 of each hypothesis by its references; ValueError where it has none."""
        if not all(references):
            raise ValueError("CIDEr-D needs a reference to compare each caption with")
        found: list[float] = []
        pairs = [
            (cook_test(words(hypothesis)), cook_refs([words(one) for one in captions]))
            for hypothesis, captions in zip(hypotheses, references, strict=True)
        ]
        # compute_cider takes the number of documents from crefs, and stops with the shorter list.
        for start in range(0, len(pairs), self._images):
            part = pairs[start : start + self._images]
            self._scorer.ctest = [test for test, _ in part]
            self._scorer.crefs = [refs for _, refs in part]
            self._scorer.crefs += [[]] * (self._images - len(part))
            found += [100 * float(score) for score in self._scorer.compute_cider()]
        return found


def words(caption: str) -> str:
    """The caption's words and its end, joined by spaces."""
    return f"{plain_tokenize(caption)} {END}"

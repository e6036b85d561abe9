"""CIDEr-D of single captions by fixed document frequencies, for rewards and for validation."""

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from ofa_exit.evaluation.metrics.captions import plain_tokenize
from ofa_exit.regular_files import regular_file

END = "<eos>"
COMMAND = "ofa-exit document-frequencies TRAIN.tsv FILE.npz"

NGram = tuple[str, ...]


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many of ``images`` each n-gram of one to four words occurs in a reference.

    N-grams of a single image are left out: log max(1, df) is 0 for them as for unknown ones.
    """

    counts: Counter[NGram]
    images: int

    @classmethod
    def of(
        cls, references: Iterable[Sequence[str]], count_end: bool = True
    ) -> "DocumentFrequencies":
        """Count over the references of each image. ``count_end``: see `CiderD`."""
        scorer, images = CiderScorer(), 0
        for captions in references:
            scorer.crefs = [cook_refs([tokenize(caption, count_end) for caption in captions])]
            scorer.compute_doc_freq()
            images += 1
        several = {gram: int(n) for gram, n in scorer.document_frequency.items() if n > 1}
        return cls(Counter(several), images)

    def save(self, stream: IO[bytes]) -> None:
        """Write an npz file without pickles."""
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
        """Read what ``save`` wrote. Raises ValueError, with the remedy, for anything else."""
        try:
            with np.load(regular_file(path), allow_pickle=False) as arrays:
                text = arrays["ngrams"].tobytes().decode()
                counts, images = _integers(arrays["counts"], 1), int(_integers(arrays["images"], 0))
            grams = [tuple(line.split(" ")) for line in text.split("\n")] if text else []
            if len(set(grams)) != len(counts) or images < 2:
                raise ValueError("its arrays do not fit together")
            if len(counts) and not 1 <= counts.min() <= counts.max() <= images:
                raise ValueError(f"its counts are not all between 1 and its {images} images")
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}: no document frequencies ({error}). Make the file by {COMMAND}"
            ) from error
        return cls(Counter(dict(zip(grams, counts.tolist()))), images)


def _integers(values: np.ndarray, dimensions: int) -> np.ndarray:
    """Return an array if it holds integers in so many dimensions. Raises ValueError otherwise."""
    if values.ndim != dimensions or values.dtype.kind not in "iu":
        raise ValueError(f"an array of {values.dtype} {list(values.shape)} instead of counts")
    return values


class CiderD:
    """Score captions one by one, with the arithmetic of pycocoevalcap.

    As a reward (``count_end``) it differs from the metric: the end of a caption counts as a word.
    Without it, a truncated caption ("a man on a") would score like a complete one. The document
    frequencies are those of the training references. Words are those of `plain_tokenize`: the PTB
    tokenizer is a Java program, far too slow for every training step.
    """

    def __init__(self, frequencies: DocumentFrequencies, count_end: bool = True) -> None:
        self._scorer = CiderScorer()
        # A lookup of a missing key adds it to the scorer's own defaultdict, but not to a Counter.
        self._scorer.document_frequency = frequencies.counts
        self._images = frequencies.images
        self._count_end = count_end

    @classmethod
    def of_split(cls, references: Sequence[Sequence[str]]) -> "CiderD":
        """Return the metric CIDEr of a split's own samples, for validation during training.

        The scores of all samples, summed over batches and workers and divided by the number of
        samples, are the CIDEr of the split.

        Args:
            references: the references of every sample of the split, in any order.
        """
        return cls(DocumentFrequencies.of(references, count_end=False), count_end=False)

    def scores(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Return CIDEr-D ×100 of each hypothesis, by one or more references."""
        found: list[float] = []
        pairs = [
            (
                cook_test(tokenize(hypothesis, self._count_end)),
                cook_refs([tokenize(caption, self._count_end) for caption in captions]),
            )
            for hypothesis, captions in zip(hypotheses, references, strict=True)
        ]
        # compute_cider reads the number of documents off crefs and stops with the shorter list:
        # pad crefs to as many documents as the frequencies were counted over.
        for start in range(0, len(pairs), self._images):
            part = pairs[start : start + self._images]
            self._scorer.ctest = [test for test, _ in part]
            self._scorer.crefs = [refs for _, refs in part]
            self._scorer.crefs += [[]] * (self._images - len(part))
            found += [100 * float(score) for score in self._scorer.compute_cider()]
        return found

    def score(self, hypothesis: str, references: Sequence[str]) -> float:
        """Return CIDEr-D ×100 of one hypothesis."""
        return self.scores([hypothesis], [references])[0]


def tokenize(caption: str, count_end: bool = True) -> str:
    """Return the caption's words, and its end if that counts, joined by spaces."""
    words = plain_tokenize(caption)
    return f"{words} {END}" if count_end else words

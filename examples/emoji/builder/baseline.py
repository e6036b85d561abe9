"""A hypothesis-only classifier: how well the text alone predicts the label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import trange

from .check import read_rows
from .hypotheses import LABELS
from .splits import SPLITS

EPOCHS = 20
BATCH_SIZE = 256
MAX_NGRAM = 3


@dataclass(frozen=True)
class Score:
    """Accuracy on one split, of the classifier and of the most frequent label."""

    rows: int
    accuracy: float
    majority: float


def ngrams(text: str) -> list[str]:
    """Return the n-grams of up to MAX_NGRAM words, with marked ends, and the whole text."""
    words = ["<", *text.split(), ">"]
    runs = [
        " ".join(words[start : start + length])
        for length in range(1, MAX_NGRAM + 1)
        for start in range(len(words) - length + 1)
    ]
    return [*runs, f"= {text}"]


def read_hypotheses(path: Path) -> tuple[list[str], torch.Tensor]:
    """Return hypotheses and labels (indices into LABELS) of an entailment file."""
    rows = list(read_rows(path))
    return [row[3] for row in rows], torch.tensor([LABELS.index(row[5]) for row in rows])


def hypothesis_only(folder: Path, seed: int = 0, epochs: int = EPOCHS) -> dict[str, Score]:
    """Train a bag-of-n-grams logistic regression on the training hypotheses; score all splits.

    The epoch that is best on valid counts, so the baseline is as strong as it can be.
    """
    torch.manual_seed(seed)
    data = {name: read_hypotheses(folder / f"entailment_{name}.tsv") for name in SPLITS}
    known = sorted({gram for text in data["train"][0] for gram in ngrams(text)})
    index = {gram: number for number, gram in enumerate(known)}
    bags = {
        name: [torch.tensor([index[g] for g in ngrams(text) if g in index]) for text in texts]
        for name, (texts, _) in data.items()
    }
    weights = torch.nn.EmbeddingBag(len(index), len(LABELS), mode="mean", sparse=False)
    torch.nn.init.zeros_(weights.weight)
    bias = torch.nn.Parameter(torch.zeros(len(LABELS)))
    optimizer = torch.optim.AdamW([*weights.parameters(), bias], lr=0.05, weight_decay=0.01)

    def logits(name: str, rows: list[int]) -> torch.Tensor:
        chosen = [bags[name][row] for row in rows]
        starts = torch.tensor([0, *(len(bag) for bag in chosen[:-1])]).cumsum(0)
        return weights(torch.cat(chosen), starts) + bias

    def accuracy(name: str) -> float:
        labels = data[name][1]
        with torch.no_grad():
            found = logits(name, list(range(len(labels)))).argmax(1)
        return (found == labels).float().mean().item()

    best: tuple[float, dict[str, float]] = (-1.0, {})
    labels = data["train"][1]
    for _ in trange(epochs, desc="baseline", unit="epoch"):
        for rows in torch.randperm(len(labels)).split(BATCH_SIZE):
            loss = torch.nn.functional.cross_entropy(logits("train", rows.tolist()), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scores = {name: accuracy(name) for name in SPLITS}
        if scores["valid"] > best[0]:
            best = scores["valid"], scores
    return {
        name: Score(len(data[name][1]), best[1][name], _majority(data[name][1])) for name in SPLITS
    }


def _majority(labels: torch.Tensor) -> float:
    return Counter(labels.tolist()).most_common(1)[0][1] / len(labels)


def report(folder: Path) -> None:
    """Print the hypothesis-only accuracies of a build as a table."""
    scores = hypothesis_only(folder)
    print(f"{'split':<20}{'rows':>7}{'hypothesis only':>18}{'commonest label':>18}")
    for name, score in scores.items():
        accuracy, majority = 100 * score.accuracy, 100 * score.majority
        print(f"{name:<20}{score.rows:>7}{accuracy:>16.1f} %{majority:>16.1f} %")

"""VisDial: NDCG, MRR, R@k and mean rank of ranked candidate answers, and its result files.

The metrics are those of Das et al. 2017 (Section 5) and, for NDCG, of the VisDial challenge since
2018. The arithmetic follows its published starter code.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_exit.evaluation.metrics.results import (
    ResultPath,
    Scores,
    index_by_id,
    missing_note,
    read_json,
    read_results,
    require_field,
    select_scored,
)

KEYS = ("image_id", "round_id")
RECALL_AT = (1, 5, 10)


def ndcg(ranks: Sequence[int], relevance: Sequence[float]) -> float:
    """Return the normalized discounted cumulative gain at k, 0 to 1.

    k is the number of candidates with a relevance above 0. DCG@k = Σ_{r=1…k} rel(r) / log₂(r + 1),
    with rel(r) the relevance of the candidate at rank r; NDCG@k divides it by the DCG@k of the best
    ranking. Ties in relevance do not change it.
    Differs from the published code, which gives NaN if no candidate is relevant: this raises
    ValueError.

    Args:
        ranks: 1 … number of candidates, one per candidate.
    """
    k = sum(value > 0 for value in relevance)
    if not k:
        raise ValueError("no candidate has a relevance above 0, so NDCG is undefined")
    ranked = sorted(zip(ranks, relevance))[:k]
    gain = sum(value / math.log2(rank + 1) for rank, value in ranked)
    best = sorted(relevance, reverse=True)[:k]
    return gain / sum(value / math.log2(rank + 1) for rank, value in enumerate(best, start=1))


class VisDialMetrics:
    """Collects rounds, each with the ranks of its candidates."""

    def __init__(self) -> None:
        self._true_ranks: list[int] = []
        self._ndcg: list[float] = []

    def __len__(self) -> int:
        return len(self._true_ranks)

    def add(
        self,
        ranks: Sequence[int],
        true_index: int,
        relevance: Sequence[float] | None = None,
        where: str = "a round",
    ) -> None:
        """Add a round.

        Args:
            ranks: the rank of each candidate.
            true_index: number of the true candidate, from 0.
            relevance: of each candidate, or None for a round that does not count for NDCG.
            where: the place that error messages begin with.

        Raises ValueError for ranks that are not a permutation of 1 … number of candidates, an index
        out of range, or a wrong number of relevances.
        """
        count = len(ranks)
        if not count or sorted(ranks) != list(range(1, count + 1)):
            raise ValueError(f"{where}: the ranks are not a permutation of 1 to {count}")
        if not 0 <= true_index < count:
            raise ValueError(f"{where}: the true answer {true_index} is none of {count} candidates")
        if relevance is not None:
            if len(relevance) != count:
                raise ValueError(f"{where}: {len(relevance)} relevances for {count} candidates")
            if not all(math.isfinite(value) and value >= 0 for value in relevance):
                raise ValueError(f"{where}: a relevance is negative or not a finite number")
            try:
                self._ndcg.append(ndcg(ranks, relevance))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        self._true_ranks.append(ranks[true_index])

    def values(self) -> dict[str, float]:
        """Return NDCG, MRR and R@k ×100, and the mean rank; NDCG only if a round had relevances."""
        rounds, values = len(self), {}
        if self._ndcg:
            values["NDCG"] = 100 * sum(self._ndcg) / len(self._ndcg)
        values["MRR"] = 100 * sum(1 / rank for rank in self._true_ranks) / rounds
        for k in RECALL_AT:
            values[f"R@{k}"] = 100 * sum(rank <= k for rank in self._true_ranks) / rounds
        values["mean rank"] = sum(self._true_ranks) / rounds
        return values

    def scores(self, notes: Sequence[str] = ()) -> Scores:
        """Return the values with the number of rounds."""
        values = self.values()
        ndcg_note = f"NDCG over {len(self._ndcg)} rounds" if self._ndcg else "NDCG missing"
        return Scores(values, len(self), "rounds", notes=[ndcg_note, *notes])


def score_visdial(
    results: ResultPath,
    annotations: ResultPath,
    dense: ResultPath | None = None,
    allow_missing: bool = False,
) -> Scores:
    """Return the metrics of ``[{"image_id": 1, "round_id": 1, "ranks": [100 integers]}, …]``.

    Rounds count from 1; ranks[i] is the rank, from 1, of candidate i.

    Args:
        annotations: visdial_1.0_val.json, with candidates and true answers of all rounds. Every
            round must be ranked, unless ``allow_missing``.
        dense: visdial_1.0_val_dense_annotations.json, with the relevances of one round per image,
            for NDCG.

    Raises ValueError, with file, image and round, if the files do not fit together.
    """
    rounds = _rounds(annotations)
    ranks: dict[str, list[int]] = read_results(results, KEYS, "ranks", list)
    scored = select_scored(ranks, rounds, results, annotations, " ".join(KEYS), allow_missing)
    relevances = _relevances(dense, rounds, annotations) if dense is not None else {}
    metrics = VisDialMetrics()
    for name in scored:
        true_index, candidates = rounds[name]
        where = f"{results}, {' '.join(KEYS)} {name}"
        given = ranks[name]
        if len(given) != candidates:
            raise ValueError(f"{where}: {len(given)} ranks for {candidates} candidates")
        if not all(type(rank) is int for rank in given):
            raise ValueError(f"{where}: the ranks should be integers")
        metrics.add(given, true_index, relevances.get(name), where)
    notes = missing_note(len(scored), len(rounds))
    if dense is None:
        notes.append("give --dense for NDCG")
    return metrics.scores(notes)


def _rounds(path: ResultPath) -> dict[str, tuple[int, int]]:
    """Return image and round → (true answer, number of candidates)."""
    data = require_field(read_json(path), "data", str(path))
    dialogs = index_by_id(require_field(data, "dialogs", str(path)), KEYS[:1], path, "its dialogs")
    rounds = {}
    for image, dialog in dialogs.items():
        for number, turn in enumerate(
            require_field(dialog, "dialog", f"{path}, image {image}"), start=1
        ):
            where = f"{path}, image {image}, round {number}"
            if "gt_index" not in turn:
                raise ValueError(
                    f"{where}: no 'gt_index'. The answers of the test split are not published: "
                    "score the validation split, or submit the file to the challenge's server"
                )
            options = require_field(turn, "answer_options", where, list)
            rounds[f"{image} {number}"] = (
                require_field(turn, "gt_index", where, int),
                len(options),
            )
    return rounds


def _relevances(
    path: ResultPath, rounds: Mapping[str, Any], annotations: ResultPath
) -> dict[str, list[float]]:
    entries = index_by_id(read_json(path), KEYS, path, "the relevances")
    found = {}
    for name, entry in entries.items():
        where = f"{path}, {' '.join(KEYS)} {name}"
        if name not in rounds:
            raise ValueError(
                f"{where}: {annotations} has no such round. Do both belong to one split?"
            )
        # The published files of train and validation use different names.
        key = "relevance" if "relevance" in entry else "gt_relevance"
        values = require_field(entry, key, where, list)
        if not all(type(value) in (int, float) for value in values):
            raise ValueError(f"{where}: a relevance is not a number")
        if len(values) != rounds[name][1]:
            raise ValueError(f"{where}: {len(values)} relevances, {rounds[name][1]} candidates")
        found[name] = values
    return found

"""Result files of SNLI-VE: accuracy, by label.

The data set has no server and no result format. An entry here is a pair's ``pairID`` and the
``prediction``: a label of the published files (gold_label), or the word that OFA answers for it.
"""

import json
from collections.abc import Mapping
from typing import Any

from ofa_exit.evaluation.metrics.results import (
    Means,
    ResultPath,
    Scores,
    index_by_id,
    missing_note,
    read_results,
    require_field,
    select_scored,
)
from ofa_exit.regular_files import regular_file

LABELS = ("entailment", "neutral", "contradiction")
# OFA's answer → label.
ANSWERS = {"yes": "entailment", "maybe": "neutral", "no": "contradiction"}


def label_of(answer: str) -> str:
    """Return the label of an answer: yes, maybe, no, or a label. Raises ValueError for others."""
    text = " ".join(answer.split()).lower()
    label = ANSWERS.get(text, text)
    if label not in LABELS:
        raise ValueError(
            f"the answer {answer[:40]!r} is none of {', '.join((*ANSWERS, *LABELS))}. Was it "
            "generated with --task mue_snli_ve?"
        )
    return label


def score_snli_ve(
    results: ResultPath, annotations: ResultPath, allow_missing: bool = False
) -> Scores:
    """Return the accuracy of ``[{"pairID": "1000092795.jpg#0r1e", "prediction": "neutral"}, …]``.

    Args:
        annotations: snli_ve_dev.jsonl or snli_ve_test.jsonl (Xie et al. 2019).

    Raises ValueError, with file and pair, for unknown labels and files that do not fit together.
    """
    predictions: dict[str, str] = read_results(results, ("pairID",), "prediction", str)
    entries = index_by_id(_read_lines(annotations), ("pairID",), annotations, "the annotations")
    scored = select_scored(predictions, entries, results, annotations, "pair", allow_missing)
    means, labels = Means(), Means()
    for name in scored:
        where = f"{annotations}, pairID {name}"
        gold = require_field(entries[name], "gold_label", where, str)
        if gold not in LABELS:
            raise ValueError(f"{where}: gold_label {gold!r}, none of {', '.join(LABELS)}")
        try:
            correct = label_of(predictions[name]) == gold
        except ValueError as error:
            raise ValueError(f"{results}, pairID {name}: {error}") from None
        means.add("accuracy", correct)
        labels.add(gold, correct)
    by_label = labels.percent()
    return Scores(
        {"accuracy": means.percent()["accuracy"][0]},
        len(scored),
        "pairs",
        {"label": {label: by_label[label] for label in LABELS if label in by_label}},
        missing_note(len(scored), len(entries)),
    )


def _read_lines(path: ResultPath) -> list[Mapping[str, Any]]:
    """Return the objects of a JSON Lines file. Raises ValueError with file and line."""
    found = []
    text = regular_file(path).read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: no JSON ({error.msg}). Give the published JSON lines, "
                    "snli_ve_test.jsonl"
                ) from None
    return found

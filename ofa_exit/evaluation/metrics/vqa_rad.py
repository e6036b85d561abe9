"""Result files of VQA-RAD: accuracy of closed, open and all questions of the test split."""

from ofa_exit.evaluation.metrics.accuracy import is_correct
from ofa_exit.evaluation.metrics.results import (
    Means,
    ResultPath,
    Scores,
    index_by_id,
    missing_note,
    read_json,
    read_results,
    require_field,
    select_scored,
)

_ORDER = ("accuracy", "closed", "open")


def score_vqa_rad(
    results: ResultPath, annotations: ResultPath, allow_missing: bool = False
) -> Scores:
    """Return the accuracy of ``[{"question_id": 10, "answer": "yes"}, …]``.

    An answer is correct if it equals the published one but for case and spaces. Closed questions
    are those of the answer_type CLOSED.

    Args:
        annotations: VQA_RAD Dataset Public.json, of which the test split is scored: questions whose
            phrase_type starts with ``test``.

    Raises ValueError, with file and question, if the files do not fit together.
    """
    entries = {
        name: entry
        for name, entry in index_by_id(read_json(annotations), ("qid",), annotations, "it").items()
        if str(entry.get("phrase_type", "")).strip().startswith("test")
    }
    if not entries:
        raise ValueError(f"{annotations}: no question has a phrase_type that starts with test")
    predictions = read_results(results, ("question_id",), "answer", str)
    scored = select_scored(predictions, entries, results, annotations, "question", allow_missing)
    means, parts = Means(), {"image organ": Means(), "phrase type": Means()}
    for name in scored:
        entry, where = entries[name], f"{annotations}, question {name}"
        answer = str(require_field(entry, "answer", where, (str, int, float)))
        correct = is_correct(predictions[name], [answer], ignore_case=True)
        kind = require_field(entry, "answer_type", where, str).strip().lower()
        means.add("accuracy", correct)
        means.add(kind, correct)
        for title, part in parts.items():
            part.add(str(entry.get(title.replace(" ", "_"))).strip().lower(), correct)
    found = means.percent()
    return Scores(
        {name: found[name][0] for name in _ORDER if name in found},
        len(scored),
        "questions",
        {
            "answer type": {name: found[name] for name in found if name != "accuracy"},
            **{title: part.percent() for title, part in parts.items()},
        },
        missing_note(len(scored), len(entries)),
    )

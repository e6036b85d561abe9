"""Result files of GQA: accuracy, and the other metrics of questions and answers.

Hudson and Manning 2019, Section 4.4, and the published `eval.py`. Grounding is missing: it needs
attention maps and scene graphs.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ofa_exit.evaluation.metrics.results import (
    Means,
    ResultPath,
    Scores,
    missing_note,
    read_json,
    read_results,
    require_field,
    select_scored,
)

# Steps, "operation: argument", that the published evaluation does not count as reasoning.
_NO_STEPS = ("exist", "query: name", "choose name")
_BREAKDOWNS = ("structural type", "semantic type", "reasoning steps", "words of the question")


def score_gqa(
    results: ResultPath,
    questions: Sequence[ResultPath],
    choices: ResultPath | None = None,
    consistency: bool = False,
    allow_missing: bool = False,
) -> Scores:
    """Return the metrics of ``[{"questionId": "05451384", "prediction": "yes"}, …]``.

    An answer is correct if it equals the annotated one letter by letter. The metrics are over the
    balanced questions, by type and length: accuracy, binary (structural type other than ``query``),
    open, and distribution: χ² of predicted against annotated answers over groups of questions,
    divided by 100; lower is better.
    Differs from the published code, which gives 0 for a metric without questions; here it is
    missing.

    Args:
        questions: SPLIT_balanced_questions.json or SPLIT_all_questions.json, or all the files of a
            split question set.
        consistency: add the mean accuracy of the questions entailed by a correctly answered one.
            Needs results for all questions, and a file with the entailed ones.
        choices: SPLIT_choices.json, for validity and plausibility.

    Raises ValueError, with file and question, if the files do not fit together.
    """
    entries = _read_questions(questions)
    source = ", ".join(map(str, questions))
    predictions: dict[str, str] = read_results(results, ("questionId",), "prediction", str)
    options = read_json(choices) if choices is not None else None
    balanced = [name for name, entry in entries.items() if entry.get("isBalanced", True)]
    wanted = list(entries) if consistency else balanced
    # A submission answers all questions of a split. As in the published code, others are ignored.
    answered = select_scored(
        predictions, wanted, results, source, "question", allow_missing, ignore_others=True
    )
    others = sum(name not in entries for name in predictions)
    scored = [name for name in answered if entries[name].get("isBalanced", True)]
    if not scored:
        raise ValueError(f"{source}: none of the questions with a result is in the balanced set")

    means, parts = Means(), {title: Means() for title in _BREAKDOWNS}
    for name in scored:
        entry, where = entries[name], f"{source}, question {name}"
        correct = predictions[name] == entry["answer"]
        means.add("accuracy", correct)
        if "types" in entry:
            kind = require_field(entry["types"], "structural", where, str)
            means.add("open" if kind == "query" else "binary", correct)
        for title, part in _parts(entry).items():
            parts[title].add(part, correct)
        if options is not None:
            allowed = require_field(options, name, str(choices), Mapping)
            for metric, key in (("validity", "valid"), ("plausibility", "plausible")):
                group = require_field(allowed, key, f"{choices}, question {name}", list)
                means.add(metric, predictions[name] in _group(entry, group))
        if consistency and correct:
            entailed = _entailed_scores(name, entries, predictions, where, allow_missing)
            if entailed:
                means.add("consistency", sum(entailed) / len(entailed))
    found = means.percent()
    order = ("accuracy", "binary", "open", "consistency", "validity", "plausibility")
    values = {name: found[name][0] for name in order if name in found}
    distribution = _distribution([(entries[name], predictions[name]) for name in scored])
    if distribution is not None:
        values["distribution"] = distribution
    return Scores(
        values,
        len(scored),
        "balanced questions",
        {title: means.percent() for title, means in parts.items() if means.percent()},
        [
            *missing_note(len(answered), len(wanted)),
            *[f"{others} results are for questions that are not in {source}"][: bool(others)],
            *_missing(values, consistency, choices),
        ],
    )


def _read_questions(paths: Sequence[ResultPath]) -> dict[str, Mapping[str, Any]]:
    entries: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        content = read_json(path)
        if not isinstance(content, Mapping) or not content:
            raise ValueError(f"{path}: questions should be a JSON object, question id → question")
        for name, entry in content.items():
            require_field(entry, "answer", f"{path}, question {name}", str)
            if name in entries:
                raise ValueError(f"{path}, question {name}: another file has it, too")
            entries[name] = entry
    return entries


def _parts(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the part of each breakdown that the question belongs to."""
    parts = {}
    if "types" in entry:
        parts = {
            "structural type": str(entry["types"].get("structural")),
            "semantic type": str(entry["types"].get("semantic")),
        }
    if "semantic" in entry:
        steps = (f"{step['operation']}: {step['argument']}" for step in entry["semantic"])
        count = sum(not any(part in step for part in _NO_STEPS) for step in steps)
        parts["reasoning steps"] = str(count)
    if "question" in entry:
        parts["words of the question"] = str(len(entry["question"].split()))
    return parts


def _group(entry: Mapping[str, Any], allowed: list[str]) -> list[str]:
    """Return the allowed answers. What two objects have in common is always one of three."""
    common = "Common" in str(entry.get("types", {}).get("detailed", ""))
    return ["color", "material", "shape"] if common else allowed


def _entailed_scores(
    name: str,
    entries: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, str],
    where: str,
    allow_missing: bool,
) -> list[bool]:
    scores = []
    for other in require_field(entries[name], "entailed", where, list):
        if other == name or (allow_missing and other not in predictions):
            continue
        if other not in entries:
            raise ValueError(
                f"{where}: it entails question {other}, which is missing. Consistency needs "
                "the file of all questions (val_all_questions.json) and results for them"
            )
        scores.append(predictions[other] == entries[other]["answer"])
    return scores


def _distribution(pairs: Sequence[tuple[Mapping[str, Any], str]]) -> float | None:
    """Return χ² of predicted against annotated answers per group, weighted by group size."""
    gold: defaultdict[str, Counter[str]] = defaultdict(Counter)
    predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry, prediction in pairs:
        group = (entry.get("groups") or {}).get("global")
        if group is not None:
            gold[group][entry["answer"]] += 1
            predicted[group][prediction] += 1
    questions = sum(answers.total() for answers in gold.values())
    if not questions:
        return None
    weighted = 0.0
    for group, answers in gold.items():
        chi = sum((predicted[group][answer] - n) ** 2 / n for answer, n in answers.items())
        weighted += chi * answers.total()
    return weighted / questions / 100


def _missing(
    values: Mapping[str, float], consistency: bool, choices: ResultPath | None
) -> list[str]:
    reasons = {
        "binary and open": "binary" in values or "open" in values or "the questions have no types",
        "consistency": consistency or "give --consistency and results for all questions",
        "validity and plausibility": choices is not None or "give --choices",
        "distribution": "distribution" in values or "the questions have no groups",
        "grounding": "it needs attention maps and scene graphs",
    }
    return [f"{name} missing: {why}" for name, why in reasons.items() if isinstance(why, str)]

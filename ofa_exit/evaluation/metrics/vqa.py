"""Result files of VQA v2, OK-VQA and VizWiz: VQA accuracy, by type of question and answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from ofa_exit.evaluation.metrics.vqa_answers import answer_accuracy, vizwiz_answer_accuracy

ANNOTATORS = 10


def score_vqa(
    results: ResultPath,
    annotations: ResultPath,
    questions: ResultPath | None = None,
    allow_missing: bool = False,
) -> Scores:
    """Return the VQA accuracy of ``[{"question_id": 1, "answer": "yes"}, …]``.

    Args:
        annotations: v2_mscoco_SPLIT_annotations.json, or OK-VQA's mscoco_SPLIT_annotations.json. Of
            the latter the stemmed ``answer`` counts, not ``raw_answer``, as published.
        questions: the questions file, to check that it belongs to the annotations.

    Raises ValueError, with file and question, if the files do not fit together.
    """
    content = read_json(annotations)
    entries = index_by_id(
        require_field(content, "annotations", str(annotations)),
        ("question_id",),
        annotations,
        "its list",
    )
    if questions is not None:
        _same_questions(entries, questions, annotations)
    # OK-VQA's types are codes; its file has their names.
    names = content.get("question_types")
    return _score(
        read_results(results, ("question_id",), "answer", str),
        entries,
        answer_accuracy,
        {"answer type": "answer_type", "question type": "question_type"},
        names if isinstance(names, Mapping) else {},
        (results, annotations, "question", allow_missing),
    )


def score_vizwiz(
    results: ResultPath, annotations: ResultPath, allow_missing: bool = False
) -> Scores:
    """Return VizWiz's accuracy of ``[{"image": "VizWiz_val_00000000.jpg", "answer": "yes"}, …]``.

    The metrics of VizWiz's second task, answerability (average precision and F1), are missing: they
    need a confidence that these results do not have.

    Args:
        annotations: val.json, a list with image, answers and answer_type.

    Raises ValueError, with file and image, if the files do not fit together.
    """
    return _score(
        read_results(results, ("image",), "answer", str),
        index_by_id(read_json(annotations), ("image",), annotations, "the annotations"),
        vizwiz_answer_accuracy,
        {"answer type": "answer_type"},
        {},
        (results, annotations, "image", allow_missing),
    )


def ten_answers(answers: Sequence[str], where: str = "") -> Sequence[str]:
    """Return the answers. Raises ValueError unless there are ten, as VQA accuracy requires."""
    if len(answers) != ANNOTATORS:
        place = f"{where}: " if where else ""
        raise ValueError(
            f"{place}{len(answers)} answers. VQA accuracy is defined on those of {ANNOTATORS} "
            "annotators: give all of them, including repeated ones"
        )
    return answers


def _score(
    predictions: Mapping[str, str],
    entries: Mapping[str, Mapping[str, Any]],
    accuracy: Callable[[str, Sequence[str]], float],
    types: Mapping[str, str],
    type_names: Mapping[str, str],
    source: tuple[ResultPath, ResultPath, str, bool],
) -> Scores:
    results, annotations, what, allow_missing = source
    scored = select_scored(predictions, entries, results, annotations, what, allow_missing)
    total = 0.0
    parts = {title: Means() for title in types}
    for name in scored:
        where = f"{annotations}, {what} {name}"
        answers = [
            require_field(answer, "answer", where, str)
            for answer in require_field(entries[name], "answers", where, list)
        ]
        value = accuracy(predictions[name], ten_answers(answers, where))
        total += value
        for title, key in types.items():
            part = entries[name].get(key)
            if part is not None:
                parts[title].add(type_names.get(part, part), value)
    return Scores(
        {"VQA accuracy": 100 * total / len(scored)},
        len(scored),
        "questions",
        {title: means.percent() for title, means in parts.items() if means.percent()},
        missing_note(len(scored), len(entries)),
    )


def _same_questions(
    entries: Mapping[str, Any], questions: ResultPath, annotations: ResultPath
) -> None:
    listed = require_field(read_json(questions), "questions", str(questions))
    asked = index_by_id(listed, ("question_id",), questions, "its list")
    different = sorted(set(asked) ^ set(entries))
    if different:
        raise ValueError(
            f"{questions} and {annotations} are not of one split: {len(different)} questions are "
            f"in one of them only, among them {different[0]}"
        )

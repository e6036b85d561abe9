"""Result files of questions whose answers are in a TSV file of OFA's format."""

from ofa_exit.data.answers import answer_form, parse_answers
from ofa_exit.data.tsv import TsvError, TsvFile
from ofa_exit.evaluation.metrics.results import (
    ResultPath,
    Scores,
    missing_note,
    read_results,
    select_scored,
)
from ofa_exit.plugin.scorers.measures import MEASURES, choose_measure

OFFICIAL_COLS = "0,3"  # question-id, answers


def score_vqa_tsv(
    results: ResultPath,
    annotations: ResultPath,
    columns: str = OFFICIAL_COLS,
    allow_missing: bool = False,
) -> Scores:
    """Return the accuracy of ``[{"question_id": "q1", "answer": "yes"}, …]``.

    It is VQA accuracy for the answers of ten annotators, exact match for one answer per question,
    and OFA's score and exact match for answers with a score.

    Args:
        annotations: the TSV file that was answered.
        columns: its columns of question-id and answers, from 0.

    Raises ValueError, with file and question, if the files do not fit together.
    """
    file = TsvFile(annotations, columns, ("uniq_id", "answers"))
    answers = {}
    for index in range(len(file)):
        row = file.row(index)
        name = row["uniq_id"].strip()
        if name in answers:
            raise file.error(index, "uniq_id", f"question {name} comes twice", "Keep one of them")
        try:
            answers[name] = parse_answers(row["answers"])
            if not answers[name]:
                raise ValueError("no answer to score against")
        except ValueError as error:
            raise file.error(
                index, "answers", str(error), "Check the columns, --columns ID,ANSWERS"
            ) from None
    predictions = read_results(results, ("question_id",), "answer", str)
    scored = select_scored(predictions, answers, results, annotations, "question", allow_missing)
    try:
        chosen = choose_measure([answer_form(answers[name]) or "" for name in scored])
    except ValueError as error:
        raise TsvError(annotations, message=str(error), remedy="Score them separately") from None
    values = {}
    for measure in [MEASURES[chosen], *[MEASURES["exact_match"]] * (chosen == "ofa_score")]:
        total = 0.0
        for name in scored:
            try:
                measure.check(answers[name])
            except ValueError as error:
                raise ValueError(f"{annotations}, question {name}: {error}") from None
            total += measure.value(predictions[name], answers[name])
        values[measure.title] = 100 * total / len(scored)
    return Scores(values, len(scored), "questions", notes=missing_note(len(scored), len(answers)))

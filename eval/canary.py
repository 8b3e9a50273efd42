"""The judge's canary: fixed answers with published grades, graded again by the study's judge.

The grades of two studies, of two months or two judges, can then be bridged: what differs on the
same answers is the judge's drift, and no effect of a training.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.errors import Problem, UserError
from core.files import read_rows
from eval import questions
from eval.generate import write_log
from eval.judge import grade
from eval.judge import preload as preload
from eval.scorer import QuestionSet

if TYPE_CHECKING:
    import pandas as pd

RESUMABLE = True  # finished calls are read from the ledger
OVERALL = "overall"
SAMPLING = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 0}  # of a log; nothing is sampled


def run(context: StageContext) -> dict[str, int | float]:
    """Grade the canary's answers by one judge.

    Writes `scored.eval` (the log), `scores.parquet` (the rows of single dimensions of
    `eval.judge.scores_table`, with the grade that was `published`) and the ledger `calls.jsonl`.
    Grades that other studies of the runs folder have paid are not used: the seeds of the requests
    derive from the study's name.

    Settings: those of a judge cell, and `study` (its name). Files: questions (the answers file,
    which has columns answer and grades {dimension: 0 or 1} besides), dimensions.

    Returns counts: responses, agreeing (grades equal to the published ones), and those of
    `eval.judge.grade`.

    Raises:
        UserError: As a judge cell; or an answer lacks its grades.
    """
    from inspect_ai.log import read_eval_log, write_eval_log

    settings = context.settings
    questions.remove_temporary(context.folder)
    scorer, question_set = questions.load_questions(context)
    answers = read_answers(Path(context.resources["files"]["questions"]), question_set)
    dataset = scorer.task(question_set, context.folder, None).dataset
    _write_answers(context, dataset, answers)
    path = context.folder / "scored.eval"
    log = read_eval_log(path)
    log, table, counts = grade(context, scorer, question_set, log, (settings["study"],))
    table = _with_published(table, answers)
    write_eval_log(log, path)
    table.to_parquet(context.folder / "scores.parquet", index=False)
    return {
        "responses": len(answers),
        "agreeing": int((table["score"] == table["published"]).sum()),
        **counts,
    }


def read_answers(path: Path, question_set: QuestionSet) -> dict[str, dict[str, Any]]:
    """Id -> row of the answers file: `answer` and `grades`, a grade for each tag of its question.

    Raises UserError with a problem for each row that lacks one.
    """
    rows = {str(row["id"]): row for _, row in read_rows(path)}
    problems = []
    for question in question_set.questions:
        row = rows[question["id"]]
        grades = row.get("grades")
        is_graded = isinstance(grades, dict) and {*grades} == {*question["tags"]}
        if not is_graded or not all(grade in (0, 1) for grade in grades.values()):
            what, fix = f"answer {row['id']!r} lacks grades", "give 0 or 1 for each of its tags"
            problems.append(Problem(str(path), what, fix))
        if not isinstance(row.get("answer"), str) or not row["answer"].strip():
            problems.append(Problem(str(path), f"{row['id']!r} has no answer", "write it as text"))
    if problems:
        raise UserError.of(problems)
    return rows


def _write_answers(context: StageContext, dataset: Any, answers: dict[str, dict[str, Any]]) -> None:
    """Write the answers as an unscored Inspect log."""
    from inspect_ai.model import ModelOutput

    outputs = {
        (key, 1): ModelOutput.from_content("canary", row["answer"]) for key, row in answers.items()
    }
    record = {"identity": context.identity, "sampling": SAMPLING}
    file = context.folder / "scored.eval"
    write_log(file, context.settings["scorer"], dataset, "canary", 1, outputs, record)


def _with_published(table: "pd.DataFrame", answers: dict[str, dict[str, Any]]) -> "pd.DataFrame":
    """The rows of single dimensions, with the published grades beside the judge's."""
    single = table[table["dimension"] != OVERALL].reset_index(drop=True)
    pairs = zip(single["question"], single["dimension"], strict=True)
    return single.assign(
        published=[float(answers[question]["grades"][dimension]) for question, dimension in pairs]
    )

"""Questions with a rubric of one sentence each; the judge decides whether the response meets it.

Higher is better.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.errors import Problem, UserError
from core.files import read_rows
from core.row_formats import row_location
from eval.patches import official_grade
from eval.scorer import QuestionSet

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score

VARIANTS = ()
# Other names of the columns, as published question sets have them.
NAMES = MappingProxyType(
    {
        "question": ("prompt", "input", "Question", "Prompt"),
        "rubric": ("criterion", "criteria", "target", "Rubric", "Criteria"),
        "category": ("type", "Category"),
    }
)
GRADE_FORMAT = "GRADE: C or GRADE: I, in the last line"


def read(files: dict[str, Path]) -> QuestionSet:
    """Read `questions`: a file with columns question, rubric and, optionally, id (by
    default the row's number), category (a dimension of the scores) and scenario (rows of one
    scenario have the same text there; by default the question's own). `NAMES` has other names of
    these columns.

    Raises UserError with a problem for every row with a missing column or a duplicate id.
    """
    problems: list[Problem] = []
    question_set = QuestionSet([], [], {}, {})
    first_places: dict[str, str] = {}
    first_ids: dict[str, str] = {}
    named = rows(files["questions"], ("question", "rubric"), problems, NAMES)
    for number, (where, row) in enumerate(named, 1):
        given = row.get("id")
        key = unique(str(number if given is None else given), where, first_places, problems)
        category = _category(row.get("category"), where, problems)
        question_set.questions.append(
            {
                "id": key,
                "question": row["question"],
                "rubric": row["rubric"],
                "tags": [category] if category else [],
            }
        )
        scenario = str(row.get("scenario") or row["question"])
        question_set.scenarios[key] = first_ids.setdefault(scenario, key)
    if problems:
        raise UserError.of(problems)
    return question_set


def _category(value: Any, where: str, problems: list[Problem]) -> str:
    """A question's category, "" without one. Appends a problem where it can't be a dimension."""
    if not isinstance(value, str | None):
        problems.append(Problem(where, f"the category {value!r} is no text", "write it as text"))
    elif value and value.strip().casefold() == "overall":
        what = f"the category {value!r} has the name of the score of a whole response"
        problems.append(Problem(where, what, "rename it"))
    return str(value or "").strip()


def task(question_set: QuestionSet, temporary: Path, grader: "Model | None") -> "Task":
    """Inspect's own `model_graded_qa` with the rubric as its criterion, graded by `grader`."""
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.scorer import model_graded_qa

    samples = [
        Sample(id=row["id"], input=row["question"], target=row["rubric"])
        for row in question_set.questions
    ]
    scorer = model_graded_qa(model=grader) if grader else None
    return Task(dataset=MemoryDataset(samples), scorer=scorer)


def to_scores(score: "Score", variant: str | None = None) -> dict[str, float]:
    """{"overall": 1 if the rubric is met, 0 if not, NaN without a usable grade}.

    It is the score of the question's category too (`eval.judge.scores_table`).
    """
    from inspect_ai.scorer import value_to_float

    return {"overall": value_to_float()(score.value)}


def num_judge_calls(question_set: QuestionSet) -> int:
    """Judge calls per epoch: one for each question."""
    return len(question_set.questions)


def has_grade(reply: str) -> bool:
    """Whether Inspect will find a grade in the judge's reply: the last GRADE counts, C or I."""
    return official_grade(reply) is not None


def missing_grades(score: "Score", tags: list[str]) -> int:
    """1 where Inspect found no grade."""
    return int(math.isnan(to_scores(score)["overall"]))


def official_score(log: "EvalLog", variant: str | None = None) -> float:
    """Inspect's accuracy, 0 to 1: the mean over questions of the mean over epochs."""
    assert log.results
    return float(log.results.scores[0].metrics["accuracy"].value)


def rows(
    path: Path,
    columns: tuple[str, ...],
    problems: list[Problem],
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file (`core.files.read_rows`), each with its place in the file.

    `names`: other names of columns; the first that a row has is taken. Every row must have
    `columns`; those other than id must hold text. A row that does not is appended to `problems`
    instead, and so is a file without rows or in another format.
    """
    valid_rows = []
    problems_before = len(problems)
    needed = f"it needs {', '.join(columns)}"
    try:
        for number, parsed in read_rows(path, problems):
            where = row_location(path, number)
            row = _renamed(parsed, names)
            missing = [
                name for name in columns if row.get(name) is None or not str(row[name]).strip()
            ]
            not_text = [
                name
                for name in columns
                if name not in ("id", *missing) and not isinstance(row[name], str)
            ]
            if missing:
                problems.append(Problem(where, f"missing column {', '.join(missing)}", needed))
            elif not_text:
                what = f"column {', '.join(not_text)} is not text"
                problems.append(Problem(where, what, "write it as text"))
            else:
                valid_rows.append((where, row))
    except UserError as error:
        problems += error.problems
    if not valid_rows and len(problems) == problems_before:
        problems.append(Problem(str(path), "no rows", f"each row needs {', '.join(columns)}"))
    return valid_rows


def _renamed(row: dict[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The row with the columns of `names` under their first name."""
    others = {
        name: next(row[other] for other in given if row.get(other) is not None)
        for name, given in names.items()
        if row.get(name) is None and any(row.get(other) is not None for other in given)
    }
    return row | others


def unique(key: str, where: str, first_places: dict[str, str], problems: list[Problem]) -> str:
    """Return `key`, and enter it in `first_places`; if it is there already, append a problem."""
    if key in first_places:
        fix = f"it is also in {first_places[key]}, rename one"
        problems.append(Problem(where, f"duplicate id {key!r}", fix))
    first_places.setdefault(key, where)
    return key

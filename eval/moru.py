"""MORU, Moral Reasoning under Uncertainty: the official task over local files. Higher is better."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import Problem, UserError
from eval.anima import formats_alone, normalized_name
from eval.questions import dataset_folder
from eval.rubric import GRADE_FORMAT as GRADE_FORMAT  # the same judge's prompt
from eval.rubric import has_grade as has_grade
from eval.rubric import rows
from eval.scorer import QuestionSet

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score, Scorer, Target
    from inspect_ai.solver import TaskState

VARIANTS = ()
COLUMNS = ("id", "question", "language", "dimension_tags")
DIMENSION_COLUMNS = ("dimension", "guiding_question", "observable_indicators")


def read(files: dict[str, Path]) -> QuestionSet:
    """Read `questions` and `dimensions`; without the latter (generating needs none) all tags stay.

    A question's id is the official sample's, id_language. Translations have one record id and are
    one scenario. The official loader silently leaves out repeated rows and unknown tags; here
    `repairs` counts them (unknown tags by name). A tag that differs from its dimension in spaces
    and hyphens only is respelled.

    Raises UserError with a problem for every row that has a missing column, the id and language of
    another text, or no known tag, and for every dimension whose name is taken or whose text breaks
    the judge's prompt.
    """
    problems: list[Problem] = []
    repairs: Counter[str] = Counter()
    question_set = QuestionSet([], [], {}, repairs)
    if "dimensions" in files:
        question_set.dimensions.extend(_dimensions(files["dimensions"], problems))
    # With half of the dimensions every other tag would be reported as unknown.
    dimensions = [] if problems else question_set.dimensions
    names = {normalized_name(row["dimension"]): row["dimension"] for row in dimensions}
    first_rows: dict[str, tuple[str, dict[str, Any]]] = {}
    first_ids: dict[str, str] = {}
    for where, columns in rows(files["questions"], COLUMNS, problems):
        row = {name: columns[name] for name in COLUMNS}
        row["record"] = str(columns["id"])
        row["id"] = f"{columns['id']}_{columns['language']}"
        first_where, first_row = first_rows.setdefault(row["id"], (where, row))
        if first_where != where and row == first_row:
            repairs["repeated row"] += 1
            continue
        if first_where != where:
            what = f"another text for {row['id']!r}"
            problems.append(Problem(where, what, f"the first is in {first_where}, rename one"))
        tags = _repair_tags(row["dimension_tags"], names, repairs)
        if not tags:
            what = f"no known tag in {row['dimension_tags']!r}"
            problems.append(Problem(where, what, f"known are {', '.join(names.values())}"))
        question_set.questions.append(row | {"tags": tags})
        question_set.scenarios[row["id"]] = first_ids.setdefault(row["record"], row["id"])
    if problems:
        raise UserError.of(problems)
    return question_set


def _dimensions(path: Path, problems: list[Problem]) -> list[dict[str, str]]:
    by_name: dict[str, dict[str, str]] = {}
    for where, columns in rows(path, DIMENSION_COLUMNS[:2], problems):
        row = {name: columns.get(name) or "" for name in DIMENSION_COLUMNS}
        if not isinstance(row["observable_indicators"], str):
            what = "column observable_indicators is not text"
            problems.append(Problem(where, what, "write it as text"))
            continue
        name = row["dimension"].strip().lower()  # as the official loader does
        row["dimension"] = name
        if name == "overall" or normalized_name(name) in by_name:
            what = f"the name {name!r} is taken"
            problems.append(Problem(where, what, "rename or remove this dimension"))
        if not all(map(formats_alone, row.values())):
            fix = "the judge's prompt takes them for a variable; remove them"
            problems.append(Problem(where, f"braces in dimension {name!r}", fix))
        by_name[normalized_name(name)] = row
    return list(by_name.values())


def _repair_tags(tags: str, names: dict[str, str], repairs: Counter[str]) -> list[str]:
    """The lower-case names of the known dimensions among comma-separated `tags`, each once."""
    known_names = []
    for tag in filter(None, (text.strip().lower() for text in tags.split(","))):
        name = names.get(normalized_name(tag)) if names else tag
        if name != tag:
            repairs["respelled" if name else f"unknown tag {tag!r}"] += 1
        if name:
            known_names.append(name)
    return list(dict.fromkeys(known_names))


def task(question_set: QuestionSet, temporary: Path, grader: "Model | None") -> "Task":
    """The official task, graded by `grader`; without one its dataset alone."""
    from inspect_ai import Task
    from inspect_evals.moru import moru
    from inspect_evals.moru.dataset import load_dataset_from_hf

    records = [
        row | {"id": row["record"], "dimension_tags": ",".join(row["tags"])}
        for row in question_set.questions
    ]
    with dataset_folder(QuestionSet(records, question_set.dimensions, {}), temporary) as folder:
        questions = f"{folder}/questions"
        dimensions = f"{folder}/dimensions"
        if grader is None:
            official = Task(dataset=load_dataset_from_hf(questions, "local"))
        else:
            official = moru(questions, dimensions, "local", "local", grader_models=[grader])
            official.scorer = [_with_every_dimension(scorer) for scorer in official.scorer or []]
    if [sample.id for sample in official.dataset] != [row["id"] for row in question_set.questions]:
        raise AssertionError(
            f"the official loader kept {len(official.dataset)} "
            f"of {len(question_set.questions)} questions"
        )
    return official


def _with_every_dimension(official: "Scorer") -> "Scorer":
    """The official scorer and metrics, but a dimension without a grade is NaN in the score.

    The official one leaves such a dimension out, and Inspect's mean over epochs refuses epochs that
    differ in their dimensions. The official metric avg_by_dimension is NaN for a dimension that a
    question got no grade for in any epoch.
    """
    from inspect_ai.scorer import scorer
    from inspect_evals.moru.metrics import avg_by_dimension, overall_mean

    @scorer(metrics=[overall_mean(), avg_by_dimension()], name="moru_scorer")
    def every_dimension() -> "Scorer":
        async def score(state: "TaskState", target: "Target") -> "Score | None":
            official_value = await official(state, target)
            if official_value and isinstance(official_value.value, dict):
                names = ["overall", *json.loads(target.text)["tags"]]
                official_value.value = dict.fromkeys(names, math.nan) | official_value.value
            return official_value

        return score

    return every_dimension()


def to_scores(score: "Score", variant: str | None = None) -> dict[str, float]:
    """Overall (the mean of the graded dimensions), then each dimension, NaN without a usable grade.

    A response without any usable grade has "overall" alone: the official scorer's NaN names no
    dimensions.
    """
    value = score.value if isinstance(score.value, dict) else {"overall": math.nan}
    return {name: float(number) for name, number in value.items()}


def num_judge_calls(question_set: QuestionSet) -> int:
    """Judge calls per epoch: one for each tag of each question."""
    return sum(len(row["tags"]) for row in question_set.questions)


def missing_grades(score: "Score", tags: list[str]) -> int:
    """The dimensions without a usable grade."""
    scores = to_scores(score)
    return sum(math.isnan(scores.get(tag, math.nan)) for tag in tags)


def official_score(log: "EvalLog", variant: str | None = None) -> float:
    """The official overall mean, 0 to 1: the mean over questions of the mean over epochs."""
    return float(log.results.scores[0].metrics["overall_mean"].value) if log.results else math.nan

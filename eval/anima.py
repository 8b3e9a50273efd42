"""ANIMA, the former Animal Harm Benchmark: the official task over local files, whose tags are
repaired. Higher is better."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from core.errors import Problem, UserError
from core.files import read_rows
from core.row_formats import row_location
from eval.patches import keep_ungraded_dimensions
from eval.questions import dataset_folder
from eval.rubric import GRADE_FORMAT as GRADE_FORMAT  # the same judge's prompt
from eval.rubric import has_grade as has_grade
from eval.scorer import QuestionSet

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score

VARIANTS = ()
QUESTION_COLUMNS = ("id", "question", "tags", "variables", "language", "translation")
REQUIRED_COLUMNS = ("id", "question", "tags")
DIMENSION_COLUMNS = (
    "dimension",
    "guiding_question",
    "scoring",
    "observable_indicators",
    "default_weighting",
)
# Columns of either file that hold text.
TEXTS = ("question", "variables", "language", "translation", *DIMENSION_COLUMNS[:2])
# Tags of the paper's question set whose dimension was given up.
VESTIGIAL_TAGS = {"perspectivetaking"}
VARIABLE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")  # of a guiding question


def read(files: dict[str, Path]) -> QuestionSet:
    """Read `questions` and `dimensions`; ids become strings.

    The official loader silently leaves out every question of which one tag is empty or is spelled
    differently from its dimension. Here tags are matched to dimensions without regard to case,
    spaces and hyphens, and empty or vestigial ones are dropped. Without `dimensions` (generating
    needs none) tags keep their spelling.

    Raises UserError with a problem for every row that has a missing column, a duplicate id, no tag
    left, an unknown tag or malformed variables, and for every dimension that the official scorer
    could not use.
    """
    path = files["questions"]
    problems: list[Problem] = []
    rows = _rows(path, REQUIRED_COLUMNS, problems)
    repairs = {"empty": 0, "respelled": 0, "vestigial": 0}
    dimensions = []
    if "dimensions" in files:
        dimensions = _dimensions(files["dimensions"], repairs, problems)
    names = {normalized_name(row["dimension"]): row["dimension"] for row in dimensions}
    question_set = QuestionSet([], dimensions, {}, repairs)
    first_lines: dict[str, int] = {}
    first_ids: dict[str, str] = {}
    for line, columns in rows:
        where = row_location(path, line)
        row: dict[str, Any] = {column: columns.get(column) for column in QUESTION_COLUMNS}
        row["id"] = str(columns["id"])
        if row["id"] in first_lines:
            fix = f"it is also in line {first_lines[row['id']]}, rename one"
            problems.append(Problem(where, f"duplicate id {row['id']!r}", fix))
        first_lines.setdefault(row["id"], line)
        if not isinstance(row["question"], str) or not row["question"].strip():
            problems.append(Problem(where, "the question is no text", "write it as text"))
        if not _well_formed(row["variables"]):
            what = f"malformed variables {row['variables']!r}"
            problems.append(Problem(where, what, "write key:value,value on each line"))
        tags = row["tags"] if isinstance(row["tags"], list) else [row["tags"]]
        row["tags"] = _repair_tags(tags, names, repairs, problems, where)
        if not row["tags"]:
            what = f"no tag left in question {row['id']!r}"
            problems.append(Problem(where, what, "tag at least one dimension"))
        question_set.questions.append(row)
        scenario = columns.get("scenario") or row["translation"] or row["question"]
        scenario_key = " ".join(str(scenario).casefold().split())
        question_set.scenarios[row["id"]] = first_ids.setdefault(scenario_key, row["id"])
    if not rows:
        problems.append(Problem(str(path), "no questions", "give one JSON object a line"))
    if problems:
        raise UserError.of(problems)
    return question_set


def _rows(
    path: Path, columns: tuple[str, ...], problems: list[Problem]
) -> list[tuple[int, dict[str, Any]]]:
    """The number and row of every row of a file that has all `columns`."""
    rows = []
    for line, row in read_rows(path, problems):
        where = row_location(path, line)
        not_text = [name for name in TEXTS if name in row and not isinstance(row[name], str | None)]
        if missing := [column for column in columns if row.get(column) is None]:
            what = f"missing column {', '.join(missing)}"
            problems.append(Problem(where, what, f"it needs {', '.join(columns)}"))
        elif not_text:
            what = f"column {', '.join(not_text)} is not text"
            problems.append(Problem(where, what, "write it as text"))
        else:
            rows.append((line, row))
    return rows


def _dimensions(
    path: Path, repairs: dict[str, int], problems: list[Problem]
) -> list[dict[str, Any]]:
    """The dimensions, with `{{ name }}` written as `{{name}}`, as the official scorer reads it.

    Whatever would end the official scorer after the judge was paid is a problem here: a value of
    another type, a weight that is not above 0, a brace that its templates take for a variable.
    """
    dimensions: dict[str, dict[str, Any]] = {}
    for line, row in _rows(path, DIMENSION_COLUMNS, problems):
        where = row_location(path, line)
        not_text = [key for key in DIMENSION_COLUMNS[:-1] if not isinstance(row[key], str)]
        if not_text:
            what = f"column {', '.join(not_text)} is not text"
            problems.append(Problem(where, what, "write it as text"))
            continue
        name = row["dimension"]
        weight = row["default_weighting"]
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight < math.inf:
            what = f"default_weighting is {weight!r}"
            problems.append(Problem(where, what, "give a number above 0"))
        if normalized_name(name) in ("overall", *dimensions):
            what = f"the name {name!r} is taken: two dimensions of one name"
            problems.append(Problem(where, what, "rename or remove one of them"))
        written = row["guiding_question"]
        row["guiding_question"] = VARIABLE.sub(r"{{\1}}", written)
        if row["guiding_question"] != written:
            repairs["variable"] = repairs.get("variable", 0) + 1
        texts = (name, VARIABLE.sub("", row["guiding_question"]), row["observable_indicators"])
        if any(not formats_alone(text) for text in texts):
            fix = "the judge's prompt takes them for a variable; write variables as {{name}}"
            problems.append(Problem(where, f"single braces in dimension {name!r}", fix))
        dimensions.setdefault(normalized_name(name), row)
    return [*dimensions.values()]


def formats_alone(text: str) -> bool:
    """Whether a template may hold the text: it names no variable by single braces."""
    try:
        text.format()
    except (KeyError, IndexError, ValueError):
        return False
    return True


def _well_formed(variables: str | None) -> bool:
    """Whether each line of a question's variables is `key:value,value`, without braces."""
    lines = (text for text in (variables or "").split("\n") if text.strip())
    return all(line.count(":") == 1 and not set("{}") & set(line) for line in lines)


def _repair_tags(
    tags: list[Any],
    names: dict[str, str],
    repairs: dict[str, int],
    problems: list[Problem],
    where: str,
) -> list[str]:
    """The names of the tags' dimensions, each once. `names`: normalized name -> dimension."""
    repaired = []
    for tag in tags:
        if not isinstance(tag, str | None):
            what = f"the tag {tag!r} is no text"
            problems.append(Problem(where, what, "write names of dimensions"))
            continue
        tag = tag or ""
        normalized = normalized_name(tag)
        if not normalized:
            repairs["empty"] += 1
        elif not names or normalized in names:
            name = names.get(normalized, tag)
            repairs["respelled"] += name != tag
            repaired.append(name)
        elif normalized in VESTIGIAL_TAGS:
            repairs["vestigial"] += 1
        else:
            fix = f"the dimensions are {', '.join(names.values())}"
            problems.append(Problem(where, f"unknown tag {tag!r}", fix))
    return list(dict.fromkeys(repaired))


def normalized_name(name: str) -> str:
    """A dimension's name without case, spaces, hyphens and underscores, for comparison."""
    return re.sub(r"[\s\-_\u2010-\u2015]", "", name).casefold()


def task(question_set: QuestionSet, temporary: Path, grader: "Model | None") -> "Task":
    """The official task, graded by `grader`; without one its dataset alone."""
    from inspect_ai import Task
    from inspect_evals.anima import anima
    from inspect_evals.anima.dataset import load_dataset_from_hf

    with dataset_folder(question_set, temporary) as folder:
        if grader is None:
            official = Task(dataset=load_dataset_from_hf(folder, "local"))
        else:
            keep_ungraded_dimensions()
            official = anima(
                dataset_repo_id=folder, dataset_revision="local", grader_models=[grader]
            )
    if [sample.id for sample in official.dataset] != [row["id"] for row in question_set.questions]:
        raise AssertionError(
            f"the official loader kept {len(official.dataset)} "
            f"of {len(question_set.questions)} questions"
        )
    return official


def to_scores(score: "Score", variant: str | None = None) -> dict[str, float]:
    """Overall (the weighted mean of the graded dimensions), then each dimension.

    Empty without any usable grade.
    """
    if not isinstance(score.value, dict):
        return {}
    return {name: float(value) for name, value in score.value.items()}


def num_judge_calls(question_set: QuestionSet) -> int:
    """Judge calls per epoch: one for each tag of each question and each way to fill in the
    variables of the tag's dimension."""
    from inspect_evals.anima.dataset import record_to_sample
    from inspect_evals.anima.scorer import get_variable_sets

    dimensions: Any = {row["dimension"]: SimpleNamespace(**row) for row in question_set.dimensions}
    calls = 0
    for row in question_set.questions:
        sample = record_to_sample(None)(row)
        target = json.loads(str(sample.target))  # type: ignore[union-attr]
        variable_sets = get_variable_sets(dimensions, target["tags"], target["variables"])
        calls += sum(map(len, variable_sets.values()))
    return calls


def missing_grades(score: "Score", tags: list[str]) -> int:
    """The grades that the official scorer discarded: several of one dimension with variables."""
    return int((score.metadata or {})["grades_unparseable"])


def official_score(log: "EvalLog", variant: str | None = None) -> float:
    """The official overall mean, 0 to 1: the mean over questions of the mean over epochs."""
    assert log.results
    return float(log.results.scores[0].metrics["overall_mean"].value)

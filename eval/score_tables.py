"""Tables of scores that somebody else has computed: one score a row, in CSV, Parquet or JSON."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import Problem, UserError
from core.files import read_rows
from core.row_formats import row_location
from eval.anima import normalized_name
from eval.scorer import QuestionSet

OVERALL = "overall"
REQUIRED = ("question", "score")
COLUMNS = "question (its text or id), score and judge, perhaps epoch and dimension"
NO_SCORE = ("", "na", "n/a", "nan", "none", "null")  # of a score, in any case
TRUTH = {"true": 1.0, "false": 0.0}


def dimension_names(question_set: QuestionSet) -> dict[str, str]:
    """The dimensions of a benchmark and "overall", by their names without case and hyphens."""
    tags = (tag for question in question_set.questions for tag in question["tags"])
    return {normalized_name(name): name for name in (OVERALL, *tags)}


def read_table(path: Path, dimensions: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a table as `eval.existing_scores` takes them, and the judges that it names.

    Columns: question (text or id), score (0 to 1; true or false; blank where there is none), judge,
    perhaps epoch (of a question's answers; by default they are counted) and dimension (blank or
    absent: overall).

    Args:
        path: A file that `core.files.read_rows` reads.
        dimensions: `dimension_names` of the benchmark.

    Raises:
        UserError: With one problem of each kind, at the first row that has it.
    """
    problems: list[Problem] = []
    firsts: dict[str, Problem] = {}
    counts: Counter[str] = Counter()
    epochs: Counter[tuple[str, str]] = Counter()
    judges: Counter[str] = Counter()
    rows = []
    for number, given in read_rows(path, problems):
        if lacking := [name for name in REQUIRED if name not in given]:
            what = f"no column {', '.join(lacking)}"
            raise UserError(where=str(path), what=what, fix=f"it needs {COLUMNS}")
        mistakes: dict[str, tuple[str, str]] = {}
        question = _text(given["question"])
        if not question:
            mistakes["question"] = ("no question", "give its text or id")
        score = _score(given["score"])
        if score is None:
            what = f"the score {given['score']!r} is no number"
            mistakes["score"] = (what, "write numbers from 0 to 1, and nothing for a missing one")
        elif not (math.isnan(score) or 0 <= score <= 1):
            mistakes["range"] = ("a score is not in 0..1", "scale the scores to 0..1")
        named = _text(given.get("dimension")) or OVERALL
        dimension = dimensions.get(normalized_name(named))
        if dimension is None:
            what = f"no question of the benchmark has the dimension {named!r}"
            mistakes[f"dimension {named}"] = (what, f"valid: {', '.join(dimensions.values())}")
        epoch = _text(given.get("epoch"))
        if "epoch" in given and not epoch:
            mistakes["epoch"] = ("no epoch", "number the answers to a question, or drop the column")
        if "epoch" not in given:
            epochs[question, named] += 1
            epoch = str(epochs[question, named])
        judge = _text(given.get("judge"))
        if "judge" in given and not judge:
            mistakes["judge"] = ("no judge", "name the model that graded")
        judges[judge] += 1
        for kind, (what, fix) in mistakes.items():
            counts[kind] += 1
            firsts.setdefault(kind, Problem(row_location(path, number), what, fix))
        rows.append(
            {
                "question": question,
                "epoch": epoch,
                "dimension": dimension,
                "score": score,
                "response": f"{question}/{epoch}",
            }
        )
    for kind, problem in firsts.items():
        more = f" (and {counts[kind] - 1} more rows)" if counts[kind] > 1 else ""
        problems.append(Problem(problem.where, problem.what + more, problem.fix))
    if problems:
        raise UserError.of(problems)
    if not rows:
        raise UserError(where=str(path), what="no rows", fix=f"it needs {COLUMNS}")
    return rows, sorted(judge for judge in judges if judge)


def _text(value: Any) -> str:
    """A cell as text. Whole numbers have no point: a column with gaps holds them as 3.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value).strip()
    whole = text.removesuffix(".0")
    return whole if whole.isdecimal() and whole != text else text


def _score(value: Any) -> float | None:
    """A cell's score, NaN where it has none; None where it is no number."""
    text = _text(value).casefold()
    if text in NO_SCORE:
        return math.nan
    if text in TRUTH:
        return TRUTH[text]
    try:
        return float(text)
    except ValueError:
        return None

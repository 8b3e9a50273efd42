"""ANIMA, the former Animal Harm Benchmark: the official task over local files, mended. Higher is better."""

import json
import math
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from eval.questions import QuestionSet, dataset_folder

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score

QUESTION_COLUMNS = ("id", "question", "tags", "variables", "language", "translation")
DIMENSION_COLUMNS = (
    "dimension",
    "guiding_question",
    "scoring",
    "observable_indicators",
    "default_weighting",
)
# In the paper's question set without a dimension of that name: the dimension was given up, its tag was left behind.
VESTIGIAL_TAGS = {"perspectivetaking"}
GRADE = re.compile(r"GRADE\s*:\s*(C|I|correct|incorrect)\b", re.IGNORECASE)


def read(files: dict[str, Path]) -> QuestionSet:
    """Read `questions` and `dimensions`; ids become strings.

    The stock loader leaves out, silently, every question of which one tag is empty or is spelled differently from
    its dimension. Here tags are matched to dimensions whatever their case, spaces and hyphens, and empty or
    vestigial ones are dropped. Without `dimensions` (generating asks for none) tags keep their spelling.

    Raises UserError with a line for every row that has a missing column, a duplicate id, no tag left, an unknown tag
    or malformed variables.
    """
    questions, dimensions = files["questions"], files.get("dimensions")
    mistakes: list[str] = []
    rows = _rows(questions, ("id", "question", "tags"), mistakes)
    known = [row for _, row in _rows(dimensions, DIMENSION_COLUMNS, mistakes)] if dimensions else []
    names = {_plain(row["dimension"]): row["dimension"] for row in known}
    if len(names) < len(known):
        mistakes.append(f"two dimensions of one name; {dimensions}; keep one")
    found = QuestionSet([], known, {}, {"empty": 0, "respelled": 0, "vestigial": 0})
    lines: dict[str, int] = {}
    for line, row in rows:
        place = f"{questions}, line {line}"
        row = {column: row.get(column) for column in QUESTION_COLUMNS} | {
            "scenario": row.get("scenario")
        }
        row["id"] = str(row["id"])
        if row["id"] in lines:
            mistakes.append(
                f"duplicate id {row['id']!r}; {place}; it is also in line {lines[row['id']]}, rename one"
            )
        lines.setdefault(row["id"], line)
        if any(
            text.count(":") != 1 for text in (row["variables"] or "").split("\n") if text.strip()
        ):
            mistakes.append(
                f"malformed variables {row['variables']!r}; {place}; write key:value,value on each line"
            )
        tags = row["tags"] if isinstance(row["tags"], list) else [row["tags"]]
        row["tags"] = _mend(tags, names, found.mended, mistakes, place)
        if not row["tags"]:
            mistakes.append(
                f"no tag left in question {row['id']!r}; {place}; tag at least one dimension"
            )
        found.questions.append(row)
    if not rows:
        mistakes.append(f"no questions; {questions}; one JSON object per line is expected")
    if mistakes:
        raise UserError(*mistakes)
    first: dict[str, str] = {}
    for row in found.questions:
        text = row.pop("scenario") or row["translation"] or row["question"]
        found.scenarios[row["id"]] = first.setdefault(
            " ".join(str(text).casefold().split()), row["id"]
        )
    return found


def _rows(
    path: Path, columns: tuple[str, ...], mistakes: list[str]
) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            mistakes.append(
                f"not JSON ({error.msg}); {path}, line {line}; one object per line is expected"
            )
            continue
        missing = [
            column for column in columns if not isinstance(row, dict) or row.get(column) is None
        ]
        if missing:
            mistakes.append(
                f"missing column {', '.join(missing)}; {path}, line {line}; it needs {', '.join(columns)}"
            )
        else:
            rows.append((line, row))
    return rows


def _mend(
    tags: list[Any], names: dict[str, str], mended: dict[str, int], mistakes: list[str], place: str
) -> list[str]:
    kept = []
    for tag in tags:
        plain = _plain(str(tag))
        if not plain:
            mended["empty"] += 1
        elif not names or plain in names:
            name = names.get(plain, tag)
            mended["respelled"] += name != tag
            kept.append(name)
        elif plain in VESTIGIAL_TAGS:
            mended["vestigial"] += 1
        else:
            mistakes.append(
                f"unknown tag {tag!r}; {place}; the dimensions are {', '.join(names.values())}"
            )
    return list(dict.fromkeys(kept))


def _plain(name: str) -> str:
    return re.sub(r"[\s\-_\u2010-\u2015]", "", name).casefold()


def task(found: QuestionSet, near: Path, grader: "Model | None") -> "Task":
    """The official task, graded by `grader`; without one its dataset alone. Temporary files are below `near`."""
    from inspect_ai import Task
    from inspect_evals.anima import anima
    from inspect_evals.anima.dataset import load_dataset_from_hf

    with dataset_folder(found, near) as folder:
        if grader is None:
            official = Task(dataset=load_dataset_from_hf(folder, "local"))
        else:
            _explain_ungraded()
            official = anima(
                dataset_repo_id=folder, dataset_revision="local", grader_models=[grader]
            )
    if [sample.id for sample in official.dataset] != [row["id"] for row in found.questions]:
        raise AssertionError(
            f"the official loader kept {len(official.dataset)} of {len(found.questions)} questions"
        )
    return official


@cache
def _explain_ungraded() -> None:
    """Let the official scorer keep a response of which one dimension got no usable grade.

    It computes the overall score from the graded dimensions and then raises KeyError while explaining the others
    (inspect_evals 0.26.0); if it did not, Inspect's mean over epochs would raise it. Both want every dimension in
    the scores: NaN is Inspect's sign for one without a score.
    """
    from inspect_evals.anima import scorer

    explain = scorer._generate_explanation

    def explain_all(
        *, target_dimensions: list[str], avg_by_dim: dict[str, float], **others: Any
    ) -> str:
        for dimension in target_dimensions:
            avg_by_dim.setdefault(dimension, math.nan)
        return explain(target_dimensions=target_dimensions, avg_by_dim=avg_by_dim, **others)

    scorer._generate_explanation = explain_all  # type: ignore[assignment]


def values(score: "Score") -> dict[str, float]:
    """Overall (the weighted mean of the graded dimensions), then each dimension; {} without any usable grade."""
    return (
        {name: float(value) for name, value in score.value.items()}
        if isinstance(score.value, dict)
        else {}
    )


def grades(found: QuestionSet) -> int:
    """Judge calls per epoch: one for each tag of each question and each way to fill in the dimension's variables."""
    from inspect_evals.anima.dataset import record_to_sample
    from inspect_evals.anima.scorer import get_variable_sets

    dimensions: Any = {row["dimension"]: SimpleNamespace(**row) for row in found.dimensions}
    calls = 0
    for row in found.questions:
        target = json.loads(str(record_to_sample(None)(row).target))  # type: ignore[union-attr]
        calls += sum(
            map(len, get_variable_sets(dimensions, target["tags"], target["variables"]).values())
        )
    return calls


def usable(reply: str) -> bool:
    """Whether the official scorer will find a grade in the judge's reply."""
    return bool(GRADE.search(reply))


def headline(log: "EvalLog") -> float:
    """The official number, 0..1: the mean over questions of the mean over epochs."""
    assert log.results
    return float(log.results.scores[0].metrics["overall_mean"].value)

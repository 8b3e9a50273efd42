"""MORU, Moral Reasoning under Uncertainty: the official task over local files. Higher is better."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from eval.anima import _plain
from eval.questions import QuestionSet, dataset_folder
from eval.rubric import rows, usable  # noqa: F401

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score, Scorer, Target
    from inspect_ai.solver import TaskState

COLUMNS = ("id", "question", "language", "dimension_tags")
DIMENSION_COLUMNS = ("dimension", "guiding_question", "observable_indicators")
VARIABLES = ("question", "answer", "criterion", "instructions", "language")  # of the judge's prompt


def read(files: dict[str, Path]) -> QuestionSet:
    """Read `questions` and `dimensions`; without the latter (generating needs none) all tags are kept.

    A question's id is the official sample's, id_language; translations have one record id and are one scenario.
    The official loader leaves out repeated rows and unknown tags without a word; here `mended` counts them (unknown
    tags by name), and a tag that differs from its dimension in spaces and hyphens only is respelled.

    Raises UserError with a line for every row that has a missing column, the id and language of another text, or no
    known tag, and for every dimension whose name is taken or whose text breaks the judge's prompt.
    """
    mistakes: list[str] = []
    mended: Counter[str] = Counter()
    found = QuestionSet([], [], {}, mended)
    if "dimensions" in files:
        found.dimensions.extend(_dimensions(files["dimensions"], mistakes))
    # Tags can't be judged by half of the dimensions.
    names = (
        {} if mistakes else {_plain(row["dimension"]): row["dimension"] for row in found.dimensions}
    )
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    first: dict[str, str] = {}
    for place, row in rows(files["questions"], COLUMNS, mistakes):
        row = {name: row[name] for name in COLUMNS} | {
            "id": f"{row['id']}_{row['language']}",
            "record": str(row["id"]),
        }
        before, same = seen.setdefault(row["id"], (place, row))
        if before != place and row == same:
            mended["repeated row"] += 1
            continue
        if before != place:
            mistakes.append(
                f"another text for {row['id']!r}; {place}; the first is in {before}, rename one"
            )
        tags = _mend(row["dimension_tags"], names, mended)
        if not tags:
            mistakes.append(
                f"no known tag in {row['dimension_tags']!r}; {place}; known are {', '.join(names.values())}"
            )
        found.questions.append(row | {"tags": tags})
        found.scenarios[row["id"]] = first.setdefault(row["record"], row["id"])
    if mistakes:
        raise UserError(*mistakes)
    return found


def _dimensions(path: Path, mistakes: list[str]) -> list[dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for place, row in rows(path, DIMENSION_COLUMNS[:2], mistakes):
        row = {name: str(row.get(name) or "") for name in DIMENSION_COLUMNS}
        name = row["dimension"] = row["dimension"].strip().lower()  # as the official loader does
        if name == "overall" or _plain(name) in found:
            mistakes.append(f"the name {name!r} is taken; {place}; rename or remove this dimension")
        try:
            " ".join(row.values()).format(**dict.fromkeys(VARIABLES, ""))
        except (KeyError, IndexError, ValueError):
            mistakes.append(
                f"braces in dimension {name!r}; {place}; the judge's prompt takes them for a variable"
            )
        found[_plain(name)] = row
    return list(found.values())


def _mend(tags: str, names: dict[str, str], mended: Counter[str]) -> list[str]:
    """The lower-case names of the known dimensions among comma-separated `tags`, each once."""
    kept = []
    for tag in filter(None, (text.strip().lower() for text in tags.split(","))):
        name = names.get(_plain(tag)) if names else tag
        if name != tag:
            mended["respelled" if name else f"unknown tag {tag!r}"] += 1
        kept += [name] if name else []
    return list(dict.fromkeys(kept))


def task(found: QuestionSet, near: Path, grader: "Model | None") -> "Task":
    """The official task, graded by `grader`; without one its dataset alone. Temporary files are below `near`."""
    from inspect_ai import Task
    from inspect_evals.moru import moru
    from inspect_evals.moru.dataset import load_dataset_from_hf

    records = [
        row | {"id": row["record"], "dimension_tags": ",".join(row["tags"])}
        for row in found.questions
    ]
    with dataset_folder(QuestionSet(records, found.dimensions, {}), near) as folder:
        questions, dimensions = f"{folder}/questions", f"{folder}/dimensions"
        if grader is None:
            official = Task(dataset=load_dataset_from_hf(questions, "local"))
        else:
            official = moru(questions, dimensions, "local", "local", grader_models=[grader])
            official.scorer = [_with_every_dimension(scorer) for scorer in official.scorer or []]
    if [sample.id for sample in official.dataset] != [row["id"] for row in found.questions]:
        raise AssertionError(
            f"the official loader kept {len(official.dataset)} of {len(found.questions)} questions"
        )
    return official


def _with_every_dimension(official: "Scorer") -> "Scorer":
    """The official scorer and metrics, but a dimension without a usable grade is NaN in a response's score.

    The official one leaves it out, and Inspect's mean over epochs refuses epochs that differ in their dimensions. The
    official metric avg_by_dimension is NaN for a dimension that a question got no grade for in any epoch.
    """
    from inspect_ai.scorer import scorer
    from inspect_evals.moru.metrics import avg_by_dimension, overall_mean

    @scorer(metrics=[overall_mean(), avg_by_dimension()], name="moru_scorer")
    def every_dimension() -> "Scorer":
        async def score(state: "TaskState", target: "Target") -> "Score | None":
            given = await official(state, target)
            if given and isinstance(given.value, dict):
                given.value = (
                    dict.fromkeys(["overall", *json.loads(target.text)["tags"]], math.nan)
                    | given.value
                )
            return given

        return score

    return every_dimension()


def values(score: "Score") -> dict[str, float]:
    """Overall (the mean of the graded dimensions), then each dimension, NaN without a usable grade.

    A response without any usable grade has "overall" alone: the official scorer's NaN names no dimensions.
    """
    value = score.value if isinstance(score.value, dict) else {"overall": math.nan}
    return {name: float(number) for name, number in value.items()}


def grades(found: QuestionSet) -> int:
    """Judge calls per epoch: one for each tag of each question."""
    return sum(len(row["tags"]) for row in found.questions)


def headline(log: "EvalLog") -> float:
    """The official number, 0..1: the mean over questions of the mean over epochs."""
    return float(log.results.scores[0].metrics["overall_mean"].value) if log.results else math.nan

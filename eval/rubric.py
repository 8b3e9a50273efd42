"""Questions with a rubric of one sentence each: the judge says whether the response meets it. Higher is better."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from eval.questions import QuestionSet

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score

VERDICT = re.compile(r"(?<!\w)GRADE\s*:\s*(\w*)", re.IGNORECASE)


def read(files: dict[str, Path]) -> QuestionSet:
    """Read `questions`: JSONL, CSV or parquet with columns id, question, rubric and, if wanted, scenario.

    Raises UserError with a line for every row with a missing column or a duplicate id.
    """
    mistakes: list[str] = []
    found = QuestionSet([], [], {}, {})
    places: dict[str, str] = {}
    first: dict[str, str] = {}
    for place, row in rows(files["questions"], ("id", "question", "rubric"), mistakes):
        key = unique(str(row["id"]), place, places, mistakes)
        found.questions.append(
            {"id": key, "question": row["question"], "rubric": row["rubric"], "tags": []}
        )
        found.scenarios[key] = first.setdefault(str(row.get("scenario") or row["question"]), key)
    if mistakes:
        raise UserError(*mistakes)
    return found


def task(found: QuestionSet, near: Path, grader: "Model | None") -> "Task":
    """Inspect's own model_graded_qa, with the rubric as its criterion, graded by `grader`."""
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.scorer import model_graded_qa

    samples = [
        Sample(id=row["id"], input=row["question"], target=row["rubric"]) for row in found.questions
    ]
    return Task(
        dataset=MemoryDataset(samples), scorer=model_graded_qa(model=grader) if grader else None
    )


def values(score: "Score") -> dict[str, float]:
    """{"overall": 1 if the rubric is met, 0 if not, NaN without a usable grade}."""
    from inspect_ai.scorer import value_to_float

    return {"overall": value_to_float()(score.value)}


def grades(found: QuestionSet) -> int:
    """Judge calls per epoch: one for each question."""
    return len(found.questions)


def usable(reply: str) -> bool:
    """Whether Inspect will find a grade in the judge's reply: the last GRADE counts, and it is C or I."""
    verdicts = VERDICT.findall(reply)
    return bool(verdicts) and verdicts[-1].lower() in ("c", "i", "correct", "incorrect")


def headline(log: "EvalLog") -> float:
    """The official number, 0..1: the mean over questions of the mean over epochs."""
    assert log.results
    return float(log.results.scores[0].metrics["accuracy"].value)


def rows(
    path: Path, columns: tuple[str, ...], mistakes: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Each row of a JSONL, CSV or parquet file (by its ending) with its place. `columns` other than id hold text.

    A row that lacks a column goes to `mistakes` instead, and so does a file without rows or in another format.
    """
    found, before = [], len(mistakes)
    try:
        for place, row in _parsed(path, mistakes):
            missing = [
                name for name in columns if row.get(name) is None or not str(row[name]).strip()
            ]
            others = [
                name
                for name in columns
                if name not in ("id", *missing) and not isinstance(row[name], str)
            ]
            if missing:
                mistakes.append(
                    f"missing column {', '.join(missing)}; {place}; it needs {', '.join(columns)}"
                )
            elif others:
                mistakes.append(f"column {', '.join(others)} is no text; {place}; write it as text")
            else:
                found.append((place, row))
    except (
        csv.Error,
        OSError,
        ValueError,
    ) as error:  # pyarrow's and Unicode's errors are ValueErrors
        mistakes.append(
            f"can't be read ({' '.join(str(error).split())}); {path}; JSONL, CSV or parquet is expected"
        )
    if not found and len(mistakes) == before:
        mistakes.append(f"no rows; {path}; each row needs {', '.join(columns)}")
    return found


def _parsed(path: Path, mistakes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
            yield f"{path}, row {number}", row
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row:
                    mistakes.append(
                        f"more cells than the header has; {place}; put texts with commas in double quotes"
                    )
                else:
                    yield place, row
    else:
        for number, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            place = f"{path}, line {number}"
            try:
                row = json.loads(text) if text.strip() else None
            except json.JSONDecodeError as error:
                mistakes.append(f"not JSON ({error.msg}); {place}; one object per line is expected")
                continue
            if isinstance(row, dict):
                yield place, row
            elif text.strip():
                mistakes.append(f"not an object; {place}; one JSON object per line is expected")


def unique(key: str, place: str, places: dict[str, str], mistakes: list[str]) -> str:
    """`key` again; if it is in `places` already, the mistake is noted, otherwise it is entered there."""
    if key in places:
        mistakes.append(f"duplicate id {key!r}; {place}; it is also in {places[key]}, rename one")
    places.setdefault(key, place)
    return key

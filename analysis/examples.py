"""Answers of both arms of the first primary contrast side by side.

The choice of answers looks at no score.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from analysis.rows import Row
from analysis.settings import ScoreFile
from core.files import read_rows

QUESTIONS = 3  # the first of the benchmark's, each with the first answer of the lowest seed


def examples(
    files: Sequence[ScoreFile], contrasts: Sequence[Row], inputs: Mapping[str, Path]
) -> list[Row]:
    """Answers on each benchmark of a primary contrast, at its first dose with numbers.

    A row has benchmark, dose, question, `asked` and the `answers` of both arms (arm, dose, seed,
    response, score). `inputs[role]` of a score file may hold examples.jsonl; `contrasts` are the
    rows of results.json.
    """
    first: dict[str, Row] = {}
    for contrast in contrasts:
        if contrast["family"] == "primary" and contrast["estimate"] is not None:
            first.setdefault(contrast["benchmark"], contrast)
    rows: list[Row] = []
    for contrast in first.values():
        rows += _contrast_examples(contrast, files, inputs)
    return rows


def _contrast_examples(
    contrast: Row, files: Sequence[ScoreFile], inputs: Mapping[str, Path]
) -> list[Row]:
    questions: dict[str, Row] = {}
    sides = (
        (contrast["treatment"], contrast["dose"]),
        (contrast["control"], contrast["control_dose"]),
    )
    for arm, dose in sides:
        file = _lowest_seed(files, contrast["benchmark"], arm, dose)
        for line in _read_examples(inputs[file.role]) if file else []:
            row = questions.setdefault(
                line["question"],
                {
                    "benchmark": contrast["benchmark"],
                    "dose": contrast["dose"],
                    "question": line["question"],
                    "asked": line["asked"],
                    "answers": [],
                },
            )
            row["answers"].append(
                {
                    "arm": arm,
                    "dose": dose,
                    "seed": file.seed if file else None,
                    "response": line["response"],
                    "score": line["score"],
                }
            )
    return [row for row in questions.values() if len(row["answers"]) == 2]


def _lowest_seed(
    files: Sequence[ScoreFile], benchmark: str, arm: str, dose: int
) -> ScoreFile | None:
    """The deciding judge's scores of the arm's checkpoint with the lowest seed."""
    matching = [
        file
        for file in files
        if (file.benchmark, file.arm, file.dose) == (benchmark, arm, dose)
        and file.other_judge is None
    ]
    return min(matching, key=lambda file: -1 if file.seed is None else file.seed, default=None)


def _read_examples(folder: Path) -> list[Row]:
    path = folder / "examples.jsonl"
    if not path.exists():
        return []
    return [row for _, row in islice(read_rows(path), QUESTIONS)]

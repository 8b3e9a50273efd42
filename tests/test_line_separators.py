"""Texts may hold U+2028 and other separators that str.splitlines takes for the end of a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import corpora, losses
from eval import anima, likelihood, rubric
from recipes import metrics, prepare
from slurm import submissions
from study.spec import benchmarks
from study.spec.schema import Benchmark


def training_texts(folder: Path) -> list[str]:
    return corpora.training_texts([{"name": "a"}], {"corpus-a": folder})["a"]


TEXT = "A hen.\u2028A cow.\u0085A fish."

QUESTION = {
    "id": "q1",
    "question": TEXT,
    "rubric": TEXT,
    "tags": ["Care"],
    "variables": "",
    "language": "en",
    "translation": "",
}
DIMENSION = {
    "dimension": "Care",
    "guiding_question": TEXT,
    "scoring": "binary",
    "observable_indicators": TEXT,
    "default_weighting": 1,
}
REFUSED = {"event": "refused", "group": "g", "reason": TEXT}
ITEM = {"id": "i1", "question": TEXT, "choices": [TEXT, "no"], "answer": 0}


def _num_questions(path: Path) -> int | None:
    bench = Benchmark(task="ahb_original", questions=str(path), judge="dummy")
    return benchmarks.num_questions(bench)


def _anima(path: Path) -> list[dict[str, Any]]:
    dimensions = path.with_name("dimensions.jsonl")
    dimensions.write_text(json.dumps(DIMENSION, ensure_ascii=False) + "\n", encoding="utf-8")
    return anima.read({"questions": path, "dimensions": dimensions}).questions


@pytest.mark.parametrize(
    ("row", "name", "read"),
    [
        (QUESTION, "questions.jsonl", _anima),
        (QUESTION, "questions.jsonl", lambda path: rubric.read({"questions": path}).questions),
        (QUESTION, "questions.jsonl", lambda path: [None] * (_num_questions(path) or 0)),
        (ITEM, "items.jsonl", likelihood.read),
        ({"text": TEXT}, "documents.jsonl", lambda path: training_texts(path.parent)),
        ({"text": TEXT}, "corpus.jsonl", lambda path: list(prepare.read_jsonl(path, "text"))),
        ({"step": 1, "loss": 1.0, "note": TEXT}, "metrics.jsonl", metrics.read),
        ({"step": 1, "loss": 1.0, "note": TEXT}, "metrics.jsonl", losses._read_curve),
        (REFUSED, submissions.FILE, lambda path: list(submissions._events(path.parent))),
    ],
)
def test_a_row_with_line_separators_is_one_row(
    tmp_path: Path, row: dict[str, Any], name: str, read: Callable[[Path], list[Any]]
) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(read(path)) == 1

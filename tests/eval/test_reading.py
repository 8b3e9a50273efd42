"""What the scorers read: three formats, counted repairs and reported mistakes."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from core.errors import UserError
from eval import anima, moru, rubric, strong_reject
from tests.eval.test_questions import jsonl
from tests.eval.test_scorers import (
    CARE,
    DIMENSIONS,
    DOUBT,
    RECORDS,
    REQUESTS,
    Grader,
    table,
)

MORU = {"questions": RECORDS, "dimensions": DIMENSIONS}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_all_three_formats_are_read_alike(tmp_path, ending):
    found = moru.read(
        {name: table(tmp_path / f"{name}.{ending}", rows) for name, rows in MORU.items()}
    )
    assert [(row["id"], row["question"], row["tags"]) for row in found.questions] == [
        ("7_en", "A worm in the ice?", [CARE, DOUBT]),
        ("7_ms", "Cacing di dalam ais?", [CARE]),
        ("8_en", "A mind in a chip?", [DOUBT]),
    ]
    assert [row["dimension"] for row in found.dimensions] == [CARE, DOUBT]
    assert found.scenarios == {"7_en": "7_en", "7_ms": "7_en", "8_en": "8_en"} and not found.repairs
    asked = strong_reject.read({"questions": table(tmp_path / f"s.{ending}", REQUESTS)})
    assert [row["question"] for row in asked.questions] == [
        row["forbidden_prompt"] for row in REQUESTS
    ]


def test_what_morus_loader_drops_is_counted(tmp_path):
    more = [
        RECORDS[0],
        {
            "id": 9,
            "language": "en",
            "question": "Why?",
            "dimension_tags": "Epistemic-humility, Control Questions,",
        },
    ]
    questions = table(tmp_path / "more.csv", [*RECORDS, *more])
    dimensions = table(tmp_path / "d.csv", DIMENSIONS)
    found = moru.read({"questions": questions, "dimensions": dimensions})
    assert found.repairs == {
        "repeated row": 1,
        "respelled": 1,
        "unknown tag 'control questions'": 1,
    }
    assert [row["id"] for row in found.questions] == ["7_en", "7_ms", "8_en", "9_en"]
    assert found.questions[3]["tags"] == [DOUBT] and moru.num_judge_calls(found) == 5
    dataset = moru.task(found, tmp_path, Grader().model).dataset
    assert [json.loads(sample.target)["tags"] for sample in dataset] == [
        row["tags"] for row in found.questions
    ]


def mistakes(module: ModuleType, **files: Path) -> list[str]:
    """What is wrong with the files; each problem has a place, and says what to do."""
    with pytest.raises(UserError) as error:
        module.read(files)
    problems = error.value.problems
    assert all(re.search(r":\d+$|, row \d+$|\.\w+$", problem.where) for problem in problems)
    assert all(problem.fix and "\n" not in str(problem) for problem in problems)
    return [problem.what for problem in problems]


def test_all_mistakes_of_a_rubric_file_are_reported_at_once(tmp_path):
    rows = [
        {"id": 0, "question": "A?", "rubric": "B."},
        {"id": "0", "question": "A?", "rubric": "B."},
    ]
    rows += [
        {"id": 1, "question": " ", "rubric": "B."},
        {"question": "A?"},
        {"id": 2, "question": 5, "rubric": "B."},
    ]
    path = jsonl(tmp_path / "r.jsonl", rows)
    path.write_text(path.read_text() + "{no\n[1]\n\n")
    assert sorted(mistakes(rubric, questions=path)) == [
        "column question is not text",
        "duplicate id '0'",
        "missing column question",
        "missing column rubric",
        "not JSON (Expecting property name enclosed in double quotes)",
        "not a JSON object",
    ]


def test_all_mistakes_of_a_request_file_are_reported_at_once(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(
        'category,source,forbidden_prompt\na,b,How?\na,b,"How?"\na,b\na,b,What,else\na,,Who?\n'
    )
    wrong = sorted(re.sub("'.*'", "ID", line) for line in mistakes(strong_reject, questions=path))
    assert wrong == [
        "duplicate id ID",
        "fewer cells than the header has",
        "missing column source",
        "more cells than the header has",
    ]


def test_all_mistakes_of_morus_files_are_reported_at_once(tmp_path):
    rows = [
        RECORDS[0],
        RECORDS[0] | {"question": "Another?"},
        RECORDS[1] | {"dimension_tags": "courage, faith"},
        RECORDS[2] | {"language": None},
    ]
    path = jsonl(tmp_path / "q.jsonl", rows)
    dimensions = jsonl(tmp_path / "d.jsonl", DIMENSIONS)
    assert sorted(mistakes(moru, questions=path, dimensions=dimensions)) == [
        "another text for '7_en'",
        "missing column language",
        "no known tag in 'courage, faith'",
    ]
    worse = [
        DIMENSIONS[0],
        DIMENSIONS[0],
        {"dimension": "overall", "guiding_question": "?"},
        {"dimension": "x"},
    ]
    worse += [
        {"dimension": "y", "guiding_question": "Is {it}?"},
        {"dimension": "z", "guiding_question": "}"},
    ]
    found = mistakes(moru, questions=jsonl(path, RECORDS), dimensions=jsonl(dimensions, worse))
    assert sorted(found) == [  # and nothing about tags, which can't be judged now
        "braces in dimension 'y'",
        "braces in dimension 'z'",
        "missing column guiding_question",
        "the name 'care for others' is taken",
        "the name 'overall' is taken",
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", b"\n\n", "no rows"),
        ("r.csv", b"id,question,rubric\n", "no rows"),
        ("r.jsonl", b"\xff\x00", "not UTF-8"),
        ("r.jsonl", b"\xff\xfe\x00", "not UTF-16"),
        ("r.parquet", b"no parquet at all", "cannot be read (Parquet magic bytes not found"),
        ("r.csv", b'id,question,rubric\n1,"A? ,B.\n', "not CSV (unexpected end of data)"),
    ],
)
def test_a_file_in_another_format_is_one_problem(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    [mistake] = mistakes(rubric, questions=tmp_path / name)
    assert mistake.startswith(words)


@pytest.mark.parametrize("category", ["overall", " Overall ", ["harm"], 5])
def test_a_category_that_can_be_no_dimension_is_refused(tmp_path, category):
    row = {"question": "A?", "rubric": "B.", "category": category}
    (what,) = mistakes(rubric, questions=jsonl(tmp_path / "r.jsonl", [row]))
    assert what.startswith(f"the category {category!r} ")


@pytest.mark.parametrize("tag", [["Care"], 5, {"name": "Care"}])
def test_a_tag_that_is_no_text_is_refused(tmp_path, tag):
    row = {"id": 1, "question": "A?", "tags": [tag], "variables": None}
    first, *_ = mistakes(anima, questions=jsonl(tmp_path / "q.jsonl", [row]))
    assert first == f"the tag {tag!r} is no text"

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from eval import anima, questions

AHB = Path(__file__).parents[3] / "shared/data/ahb"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(key: Any, *tags: str, **others: Any) -> dict[str, Any]:
    return {"id": key, "question": f"Question {key}?", "tags": list(tags), **others}


def dimensions(path: Path, *names: str) -> Path:
    rubric = {
        "guiding_question": "Is it?",
        "scoring": "1/0",
        "observable_indicators": "x",
        "default_weighting": 1.0,
    }
    return jsonl(path, [{"dimension": name, **rubric} for name in names])


def read(questions: Path, dimensions: Path) -> questions.QuestionSet:
    return anima.read({"questions": questions, "dimensions": dimensions})


def test_tags_are_repaired_and_counted(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    rows = [
        question(0, "Trade-off Transparency", "", "Sentience Acknowledgement"),
        question(1, "trade off  TRANSPARENCY", "Perspective-Taking"),
        question(2, "Trade-Off Transparency", "Trade-off Transparency"),
    ]
    names = ("Trade-Off Transparency", "Sentience Acknowledgement")
    found = read(jsonl(tmp_path / "q.jsonl", rows), dimensions(tmp_path / "d.jsonl", *names))
    assert [row["tags"] for row in found.questions] == [list(names), [names[0]], [names[0]]]
    assert found.repairs == {"empty": 1, "respelled": 3, "vestigial": 1}
    assert [sample.id for sample in anima.task(found, tmp_path, None).dataset] == ["0", "1", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "d.jsonl",
        "q.jsonl",
    ]  # no cache, nothing temporary


def test_a_dimension_called_perspective_taking_is_scored_where_there_is_one(tmp_path):
    rows = [question(0, "Perspective-Taking")]
    found = read(
        jsonl(tmp_path / "q.jsonl", rows), dimensions(tmp_path / "d.jsonl", "Perspective Taking")
    )
    assert found.questions[0]["tags"] == ["Perspective Taking"]


def test_all_mistakes_are_reported_at_once(tmp_path):
    rows = [
        question(0, "A"),
        question("0", "A"),
        question(1, "B"),
        {"id": 2, "tags": ["A"]},
        question(3, "", "Perspective-Taking"),
        question(4, "A", variables="animal hens"),
    ]
    path = jsonl(tmp_path / "q.jsonl", rows)
    path.write_text(path.read_text() + "{not JSON\n")
    with pytest.raises(UserError) as error:
        read(path, dimensions(tmp_path / "d.jsonl", "A"))
    assert sorted(problem.what for problem in error.value.problems) == [
        "duplicate id '0'",
        "malformed variables 'animal hens'",
        "missing column question",
        "no tag left in question '1'",
        "no tag left in question '3'",
        "not JSON (Expecting property name enclosed in double quotes)",
        "unknown tag 'B'",
    ]
    assert all("q.jsonl:" in problem.where and problem.fix for problem in error.value.problems)


def test_translations_share_a_scenario(tmp_path):
    rows = [
        question(0, "A"),
        question(1, "A", translation="question 0?", language="Thai"),
        question(2, "A", scenario="zoo"),
        question(3, "A", scenario="zoo", translation="Question 0?"),
    ]
    found = read(jsonl(tmp_path / "q.jsonl", rows), dimensions(tmp_path / "d.jsonl", "A"))
    assert found.scenarios == {"0": "0", "1": "0", "2": "2", "3": "2"}


@pytest.mark.skipif(not AHB.exists(), reason="the real question set is not part of the project")
def test_the_real_question_set_is_whole(tmp_path):
    found = read(AHB / "questions.jsonl", AHB / "dimensions.jsonl")
    assert found.repairs == {"empty": 1, "respelled": 0, "vestigial": 0}
    assert len(anima.task(found, tmp_path, None).dataset) == 115
    assert 90 <= len(set(found.scenarios.values())) < 100
